"""LangChain's stores: FAISS of langchain-community, and InMemoryVectorStore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from worker import Floats, K


class Given(Embeddings):
    """Hands out vectors that are there already: encoding is no part of this."""

    def __init__(self) -> None:
        self.next: list[list[float]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors that belong to the call."""
        return self.next

    def embed_query(self, text: str) -> list[float]:
        """The first of them; searches here are by vector."""
        return self.next[0]


class Faiss:
    """``FAISS.from_embeddings``, saved and loaded; flat and exact, as it is by default."""

    packages = ("langchain-community", "langchain-core", "faiss-cpu", "numpy")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: Any = None

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add and save."""
        from langchain_community.vectorstores import FAISS

        pairs = list(zip(texts, vectors.tolist(), strict=True))
        self._store = FAISS.from_embeddings(pairs, Given(), ids=[str(number) for number in range(len(texts))])
        self._store.save_local(str(self._folder))

    def open(self) -> None:
        """Load; it unpickles its documents."""
        from langchain_community.vectorstores import FAISS

        self._store = FAISS.load_local(str(self._folder), Given(), allow_dangerous_deserialization=True)

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """By vector."""
        found = self._store.similarity_search_with_score_by_vector(vector.tolist(), k=K)
        return [(document.id, document.page_content) for document, _ in found]

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """One by one: it has no batch search."""
        return [self.search(vector) for vector in vectors]


class InMemory:
    """``InMemoryVectorStore``, dumped and loaded."""

    packages = ("langchain-core", "numpy")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: Any = None

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add and dump."""
        given = Given()
        store = InMemoryVectorStore(given)
        for start in range(0, len(texts), 1000):
            given.next = vectors[start : start + 1000].tolist()
            part = texts[start : start + 1000]
            store.add_texts(part, ids=[str(start + place) for place in range(len(part))])
        store.dump(str(self._folder / "store.json"))

    def open(self) -> None:
        """Load."""
        self._store = InMemoryVectorStore.load(str(self._folder / "store.json"), Given())

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """By vector."""
        found = self._store.similarity_search_with_score_by_vector(vector.tolist(), k=K)
        return [(document.id, document.page_content) for document, _ in found]

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """One by one: it has no batch search."""
        return [self.search(vector) for vector in vectors]


def make(folder: Path, *, store: str) -> Faiss | InMemory:
    """Make a side."""
    return Faiss(folder) if store == "faiss" else InMemory(folder)
