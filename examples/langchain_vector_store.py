"""Keep documents in an index folder with LangChain. `stm-train demo` makes the retriever."""

from langchain_stm import STMEmbeddings, STMVectorStore

question = "Why do I wheeze and cough at night?"
embeddings = STMEmbeddings(model="runs/demo/retriever")
with STMVectorStore("runs/demo/notes", embeddings) as store:
    texts = ["Asthma narrows the airways.", "Gout comes from uric acid.", "Asthma is worse at night."]
    store.add_texts(texts, [{"year": year} for year in (2019, 2022, 2024)], ids=["a", "b", "c"])
    recent = {"filter": {"year": {"$gte": 2020}}, "mode": "hybrid"}
    for document, score in store.similarity_search_with_score(question, k=2, **recent):
        print(f"{score:.3f}  {document.id}  {document.page_content}")
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2})
    print([document.id for document in retriever.invoke(question)])
