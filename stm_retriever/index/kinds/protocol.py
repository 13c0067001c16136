"""What the index folder asks of a vector index, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Sample = Callable[[int], Vectors]
"""Gives up to that many of the vectors that the index will hold, float32 (n, dimension), for training."""


class VectorIndex(Protocol):
    """Vectors of length 1 under integer labels, searched by inner product.

    Any number of threads may search at once; callers lock whatever changes it.
    """

    def __len__(self) -> int:
        """Return how many vectors it holds."""
        ...

    def live_labels(self) -> Labels:
        """Return the labels of all vectors that it holds, sorted; not to be changed."""
        ...

    def add(self, labels: Labels, vectors: Vectors) -> None:
        """Add vectors, float32 (n, dimension), under labels, int64 (n,), that it does not hold yet."""
        ...

    def remove(self, labels: Labels) -> None:
        """Remove labels; those that it does not hold are ignored."""
        ...

    def search(self, queries: Vectors, k: int, *, allowed: Labels | None = None) -> list[Labels]:
        """Find the nearest vectors of each query.

        Args:
            queries: float32 (n, dimension), of length 1.
            k: How many per query, at most.
            allowed: Sorted, distinct labels; no others are found. Those that it does not hold are ignored.

        Returns:
            Per query the labels found, int64, best first. Fewer than k if the index holds fewer that are
            allowed; approximate kinds may also find fewer.
        """
        ...

    def reconstruct(self, labels: Labels) -> Vectors | None:
        """Return the vectors under labels as they were added, or None where only codes of them are kept."""
        ...

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        ...

    @property
    def keeps_vectors(self) -> bool:
        """Whether it holds the vectors as they were added, and not only codes of them."""
        ...

    @property
    def candidates_factor(self) -> int:
        """How many times k candidates to ask for, where their exact scores decide afterwards."""
        ...

    @property
    def stale(self) -> str | None:
        """Why a rebuild would help, in words, or None."""
        ...
