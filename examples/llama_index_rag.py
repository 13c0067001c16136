"""Answer a question from an index with LlamaIndex. `stm-train demo` makes the two folders."""

from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index.embeddings.stm import STMEmbedding
from llama_index.retrievers.stm import STMRetriever

question = "Why do I wheeze and cough at night?"
retriever = STMRetriever(index="runs/demo/index", similarity_top_k=3)
engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())  # put your LLM here
response = engine.query(question)
for source in response.source_nodes:
    print(f"{source.score:.3f}  {source.node_id}  {source.text[:60]}")
print(response)  # the stand-in repeats the prompt that your LLM would get

embedding = STMEmbedding(model_name="runs/demo/retriever")  # for Settings.embed_model, VectorStoreIndex, ...
print(len(embedding.get_query_embedding(question)), "dimensions")
