"""Vector indexes behind one small interface; each kind is a class in :data:`KINDS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError, require

Labels = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class VectorIndex(Protocol):
    """Unit vectors under integer labels, searched by inner product. Not thread-safe; callers lock."""

    def __len__(self) -> int:
        """Return how many vectors it holds."""
        ...

    def add(self, labels: Labels, vectors: Vectors) -> None:
        """Add vectors, float32 (n, dimension), under labels, int64 (n,), that it does not hold yet."""
        ...

    def remove(self, labels: Labels) -> None:
        """Remove labels; those that it does not hold are ignored."""
        ...

    def search(self, queries: Vectors, k: int) -> Labels:
        """Return the labels of the k <= len(self) nearest of each query, int64 (n, k), best first."""
        ...

    def reconstruct(self, labels: Labels) -> Vectors:
        """Return the stored vectors, float32 (n, dimension)."""
        ...

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        ...


class FlatIndex:
    """Every vector is compared with the query: exact, and fast enough to some 50 000 documents."""

    def __init__(self, dimension: int, path: Path | None = None) -> None:
        self._faiss: Any = require("faiss", extra="cpu", purpose="the vector index")
        if path is None:
            self._index = self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(dimension))
            return
        index = self._faiss.read_index(str(path))
        inner = getattr(index, "index", None)
        if not isinstance(index, self._faiss.IndexIDMap2) or index.d != dimension:
            raise ValueError(f"holds a {type(index).__name__} of {index.d} dimensions")
        if type(self._faiss.downcast_index(inner)) is not self._faiss.IndexFlatIP:
            raise ValueError(f"holds a {type(inner).__name__} inside")
        self._index = index

    def __len__(self) -> int:
        """Return how many vectors it holds."""
        return int(self._index.ntotal)

    def add(self, labels: Labels, vectors: Vectors) -> None:
        """Add vectors under new labels."""
        if len(labels):
            self._index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), labels)

    def remove(self, labels: Labels) -> None:
        """Remove labels."""
        if len(labels):
            self._index.remove_ids(np.ascontiguousarray(labels, dtype=np.int64))

    def search(self, queries: Vectors, k: int) -> Labels:
        """Return the nearest labels of each query."""
        found: Labels = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)[1]
        return found

    def reconstruct(self, labels: Labels) -> Vectors:
        """Return stored vectors."""
        stored: Vectors = self._index.reconstruct_batch(np.ascontiguousarray(labels, dtype=np.int64))
        return stored

    def save(self, path: Path) -> None:
        """Write to a file."""
        self._faiss.write_index(self._index, str(path))


KINDS: dict[str, type[FlatIndex]] = {"flat": FlatIndex}


def check_kind(kind: str) -> None:
    """Raise :class:`ConfigError` unless there is such a kind of index."""
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is no kind of index. Take one of: {', '.join(sorted(KINDS))}.")


def new_index(kind: str, dimension: int) -> VectorIndex:
    """Make an empty index of a kind."""
    check_kind(kind)
    return KINDS[kind](dimension)


def load_index(kind: str, dimension: int, path: Path) -> VectorIndex:
    """Load a saved index.

    Raises:
        ValueError: If the file holds another kind or dimension.
        RuntimeError: If FAISS cannot read it.
    """
    check_kind(kind)
    return KINDS[kind](dimension, path)
