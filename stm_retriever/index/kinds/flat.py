"""Every vector is compared with the query: exact, and fast enough to some 50 000 documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.index.kinds.files import write_rows
from stm_retriever.index.kinds.labelled import LabelledIndex
from stm_retriever.index.kinds.protocol import Labels, Vectors

_GATHERED = 0.6  # up to this share of matches, copying them out beats multiplying with all vectors
_BLOCK = 1024  # rows multiplied at once; more would leave the processor's cache
_QUERIES = 64  # whose scores are in memory at once


class FlatIndex(LabelledIndex):
    """Exact search over the vectors themselves."""

    candidates_factor = 1
    keeps_vectors = True

    def __init__(
        self,
        dimension: int,
        *,
        advice: Callable[[int], str | None] | None = None,
        opened: tuple[Any, Labels] | None = None,
        mapped: bool = False,
    ) -> None:
        """Make an empty index, or take a saved one.

        Args:
            dimension: Of the vectors.
            advice: Gives a reason to rebuild it as something else, from the count.
            opened: An ``IndexFlatIP`` and the labels of its rows, as :func:`files.read_rows` gives them.
            mapped: Whether its vectors lie in a mapped file, which is not changed.

        Raises:
            ValueError: If rows have no label.
        """
        index, labels = opened or (None, None)
        super().__init__(labels, mapped=mapped)
        self._advice = advice
        self._index = self._faiss.IndexFlatIP(dimension) if index is None else index
        if self._labels.dead:
            raise ValueError(f"holds {self._labels.dead} vectors without a label")

    def remove(self, labels: Labels) -> None:
        """Remove labels."""
        rows = np.unique(self._labels.find(np.asarray(labels, np.int64)))
        if len(rows):
            self._own()
            self._view = None
            self._index.remove_ids(self._faiss.IDSelectorBatch(rows))
            self._labels.take_out(rows)

    def search(self, queries: Vectors, k: int, *, allowed: Labels | None = None) -> list[Labels]:
        """Return the nearest labels of each query."""
        if allowed is not None:
            return self._search_among(queries, k, self._labels.find(allowed))
        k = min(k, len(self._labels))
        if k == 0:
            return [np.empty(0, np.int64) for _ in queries]
        return list(self._labels.by_row[self._index.search(queries, k)[1]])

    def reconstruct(self, labels: Labels) -> Vectors:
        """Return stored vectors.

        Raises:
            KeyError: If a label is not there.
        """
        rows = self._labels.find(labels)
        if len(rows) != len(labels):
            raise KeyError(f"{len(labels) - len(rows)} of {len(labels)} labels are not in the index")
        found: Vectors = self.stored()[rows]
        return found

    def save(self, path: Path) -> None:
        """Write to a file."""
        write_rows(self._index, self._labels.by_row, path)

    def stored(self) -> Vectors:
        """Return all vectors in the order of rows, float32 (n, dimension), as a view not to be written to."""
        return self._view_of(self._index)

    @property
    def stale(self) -> str | None:
        """Why a rebuild would help, or None."""
        return None if self._advice is None else self._advice(len(self))

    @property
    def faiss_index(self) -> Any:
        """The FAISS index itself, for a copy on another device; not to be changed."""
        return self._index

    def _search_among(self, queries: Vectors, k: int, rows: Labels) -> list[Labels]:
        k = min(k, len(rows))
        if k == 0:
            return [np.empty(0, np.int64) for _ in queries]
        return best_of(queries, self.stored(), rows, self._labels.by_row, k)


def best_of(queries: Vectors, stored: Vectors, rows: Labels, by_row: Labels, k: int) -> list[Labels]:
    """Rank some rows exactly, by matrix products.

    Args:
        queries: float32 (n, dimension).
        stored: All vectors by row.
        rows: The rows that count, at least k.
        by_row: The label of every row.
        k: How many per query.

    Returns:
        The labels of the k best rows per query, best first.
    """
    labels = by_row[rows]
    found = []
    for start in range(0, len(queries), _QUERIES):
        for row in _scores(queries[start : start + _QUERIES], stored, rows):
            many = k < len(row)
            best = np.argpartition(row, len(row) - k)[len(row) - k :] if many else np.arange(len(row))
            found.append(labels[best[np.argsort(-row[best], kind="stable")]])
    return found


def _scores(queries: Vectors, stored: Vectors, rows: Labels) -> Vectors:
    """Inner products with some rows, float32 (n queries, n rows); FAISS's own filtered scan is slower."""
    if len(rows) > _GATHERED * len(stored):
        every = np.empty((len(queries), len(stored)), np.float32)
        for start in range(0, len(stored), _BLOCK):
            np.matmul(queries, stored[start : start + _BLOCK].T, out=every[:, start : start + _BLOCK])
        return every[:, rows]
    scores = np.empty((len(queries), len(rows)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = stored[rows[start : start + _BLOCK]]
        np.matmul(queries, block.T, out=scores[:, start : start + _BLOCK])
    return scores
