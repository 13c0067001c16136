"""A FAISS index beside the labels of its rows: what every kind of ours has in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from stm_retriever.errors import require
from stm_retriever.index.kinds.protocol import Labels, Vectors
from stm_retriever.index.kinds.rows import RowLabels


class LabelledIndex:
    """Rows with labels, in memory or in a mapped file that is copied before the first change."""

    def __init__(self, labels: Labels | None, *, mapped: bool) -> None:
        """Take the labels of the rows; the index itself is set by the kind.

        Args:
            labels: Of every row; None for an empty index.
            mapped: Whether the vectors lie in a mapped file, which is not changed.
        """
        self._faiss: Any = require("faiss", extra="cpu", purpose="the vector index")
        self._index: Any = None
        self._labels = RowLabels(labels)
        self._mapped = mapped
        self._view: Vectors | None = None

    def __len__(self) -> int:
        """Return how many vectors it holds, without those removed."""
        return len(self._labels)

    @property
    def labels(self) -> RowLabels:
        """Which label lies in which row; not to be changed."""
        return self._labels

    def live_labels(self) -> Labels:
        """Return the labels of all vectors, sorted."""
        return self._labels.live()

    def add(self, labels: Labels, vectors: Vectors) -> None:
        """Add vectors under new labels."""
        if len(labels):
            self._own()
            self._view = None
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self._labels.append(labels)

    def _own(self) -> None:
        """Copy a file that is mapped into memory before the first change: the file must stay as it is."""
        if self._mapped:
            self._view = None
            self._index = self._faiss.deserialize_index(self._faiss.serialize_index(self._index))
            self._mapped = False

    def _view_of(self, flat: Any) -> Vectors:
        """All vectors of a FAISS ``IndexFlat`` by row, not to be written to; made once until they change."""
        view = self._view
        if view is None:
            size = flat.ntotal * flat.d
            numbers = self._faiss.rev_swig_ptr(flat.get_xb(), size) if size else np.empty(0, np.float32)
            view = self._view = numbers.reshape(-1, flat.d)
        return view
