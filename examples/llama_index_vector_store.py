"""Keep documents in an index folder with LlamaIndex. `stm-train demo` makes the retriever."""

from llama_index.core import Document, StorageContext, VectorStoreIndex

from llama_index.embeddings.stm import STMEmbedding
from llama_index.vector_stores.stm import STMVectorStore

question = "Why do I wheeze and cough at night?"
embedding = STMEmbedding(model_name="runs/demo/retriever")
with STMVectorStore("runs/demo/notes", embedding) as store:
    texts = ["Asthma narrows the airways.", "Gout comes from uric acid.", "Asthma is worse at night."]
    documents = [Document(id_=str(number), text=text) for number, text in enumerate(texts)]
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embedding)
    for source in index.as_retriever(similarity_top_k=2).retrieve(question):
        print(f"{source.score:.3f}  {source.node.ref_doc_id}  {source.text}")
