"""Answer a question from an index with LangChain. `stm-train demo` makes the two folders."""

from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate

from langchain_stm import STMEmbeddings, STMRetriever

question = "Why do I wheeze and cough at night?"
documents = STMRetriever(index="runs/demo/index", k=3).invoke(question)
for document in documents:
    print(f"{document.metadata['score']:.3f}  {document.id}  {document.page_content[:60]}")

prompt = ChatPromptTemplate.from_template("Answer from this text:\n{text}\n\nQuestion: {question}")
llm = FakeListChatModel(responses=["This is a stand-in: put your chat model here."])
text = "\n\n".join(document.page_content for document in documents)
print((prompt | llm).invoke({"text": text, "question": question}).content)

embeddings = STMEmbeddings(model="runs/demo/retriever")  # for any of LangChain's vector stores
print(len(embeddings.embed_query(question)), "dimensions")
