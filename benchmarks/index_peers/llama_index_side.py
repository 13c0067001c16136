"""LlamaIndex's stores in a VectorStoreIndex with its documents: SimpleVectorStore and FaissVectorStore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import QueryBundle, TextNode
from worker import Floats, K


class Stored:
    """A VectorStoreIndex over one of the two stores, persisted and loaded, asked through its retriever."""

    def __init__(self, folder: Path, *, faiss: bool) -> None:
        extra = ("llama-index-vector-stores-faiss", "faiss-cpu") if faiss else ()
        self.packages = ("llama-index-core", "numpy", *extra)
        self._folder = folder
        self._faiss = faiss
        self._retriever: Any = None

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add and persist."""
        context = StorageContext.from_defaults(vector_store=self._new_store(vectors.shape[1]))
        index = VectorStoreIndex([], storage_context=context, embed_model=MockEmbedding(vectors.shape[1]))
        for start in range(0, len(texts), 1000):
            rows = zip(texts[start : start + 1000], vectors[start : start + 1000].tolist(), strict=True)
            index.insert_nodes(
                [
                    TextNode(id_=str(start + place), text=text, embedding=vector)
                    for place, (text, vector) in enumerate(rows)
                ]
            )
        context.persist(str(self._folder))

    def open(self) -> None:
        """Load."""
        store = None
        if self._faiss:
            from llama_index.vector_stores.faiss import FaissVectorStore

            store = FaissVectorStore.from_persist_dir(str(self._folder))
        context = StorageContext.from_defaults(vector_store=store, persist_dir=str(self._folder))
        index: Any = load_index_from_storage(context, embed_model=MockEmbedding(1))
        self._retriever = index.as_retriever(similarity_top_k=K)

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """By vector."""
        found = self._retriever.retrieve(QueryBundle("", embedding=vector.tolist()))
        return [(node.node.node_id, node.node.get_content()) for node in found]

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """One by one: it has no batch search."""
        return [self.search(vector) for vector in vectors]

    def _new_store(self, dimension: int) -> Any:
        if not self._faiss:
            return None
        import faiss
        from llama_index.vector_stores.faiss import FaissVectorStore

        return FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimension))


def make(folder: Path, *, store: str) -> Stored:
    """Make a side."""
    return Stored(folder, faiss=store == "faiss")
