"""Use a retriever folder and an index folder in LangChain.

from langchain_stm import STMEmbeddings, STMRetriever, STMVectorStore

STMEmbeddings(model="folder")                       # in any LangChain vector store
STMRetriever(index="index-folder", k=4)             # in any chain; reads an index
STMVectorStore("index-folder", embedding)           # adds, deletes and searches
import_faiss("faiss-folder", embedding, "index-folder")  # once, from LangChain's FAISS store
"""

from __future__ import annotations

from stm_retriever.errors import require

require("langchain_core", extra="langchain", purpose="langchain_stm")

from langchain_stm.embeddings import STMEmbeddings  # noqa: E402  (the check above must come first)
from langchain_stm.faiss_import import import_faiss  # noqa: E402
from langchain_stm.retrievers import STMRetriever  # noqa: E402
from langchain_stm.vectorstores import STMVectorStore  # noqa: E402

__all__ = ["STMEmbeddings", "STMRetriever", "STMVectorStore", "import_faiss"]
