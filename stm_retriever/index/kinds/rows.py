"""Which label lies in which row of a FAISS index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stm_retriever.index.kinds.protocol import Labels

Rows = npt.NDArray[np.int64]

DEAD = -1
"""The label of a row whose vector was removed, where FAISS cannot take it out."""


class RowLabels:
    """Labels by row, and rows by label without a loop in Python."""

    def __init__(self, labels: Labels | None = None) -> None:
        """Start with the labels of rows 0 to n - 1; :data:`DEAD` for a row whose vector was removed."""
        self._rows: Labels = np.empty(0, np.int64) if labels is None else np.array(labels, np.int64)
        self._count = len(self._rows)
        self._dead = int(np.count_nonzero(self._rows == DEAD))
        self._lookup: tuple[Labels, Rows] | None = None
        self._first: int | None = None
        self._bits: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return how many rows carry a label."""
        return self._count - self._dead

    @property
    def count(self) -> int:
        """How many rows there are, those without a label too."""
        return self._count

    @property
    def dead(self) -> int:
        """How many rows carry no label any more."""
        return self._dead

    @property
    def by_row(self) -> Labels:
        """The label of every row; not to be changed."""
        return self._rows[: self._count]

    def append(self, labels: Labels) -> None:
        """Give labels to new rows behind the last one."""
        needed = self._count + len(labels)
        if needed > len(self._rows):  # grows by halves, so that many small additions do not copy each time
            grown = np.empty(max(needed, self._count + self._count // 2), np.int64)
            grown[: self._count] = self.by_row
            self._rows = grown
        self._rows[self._count : needed] = labels
        self._count = needed
        self._forget()

    def bury(self, rows: Rows) -> None:
        """Take the labels of rows away; the rows stay."""
        self._rows[rows] = DEAD
        self._dead += len(rows)
        self._forget()

    def take_out(self, rows: Rows) -> None:
        """Take rows out; those behind them move up."""
        kept = np.delete(self.by_row, rows)
        self._rows, self._count = kept, len(kept)
        self._forget()

    def find(self, labels: Labels) -> Rows:
        """Return the rows of those labels that are there, in the order of ``labels``."""
        known, rows = self._sorted()
        if not len(known):
            return np.empty(0, np.int64)
        if self._first is not None:  # nothing was replaced or removed yet: no search
            places = labels - self._first
            return places[(places >= 0) & (places < len(known))]
        places = np.searchsorted(known, labels)
        places[places == len(known)] = 0
        found: Rows = rows[places[known[places] == labels]]
        return found

    def live(self) -> Labels:
        """Return the labels of all rows that carry one, sorted; not to be changed."""
        return self._sorted()[0]

    def live_bits(self) -> npt.NDArray[np.uint8]:
        """Return one bit per row, the first row lowest: whether it carries a label."""
        bits = self._bits
        if bits is None:
            bits = self._bits = np.packbits(self.by_row != DEAD, bitorder="little")
        return bits

    def bits_of(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Return one bit per row, the first row lowest: whether it is among ``rows``."""
        mask = np.zeros(self._count, np.bool_)
        mask[rows] = True
        return np.packbits(mask, bitorder="little")

    def _sorted(self) -> tuple[Labels, Rows]:
        lookup = self._lookup
        if lookup is None:  # two threads may both make it; both make the same
            rows = np.argsort(self.by_row, kind="stable")  # nearly sorted already: fast
            labels = self.by_row[rows]
            lookup = (labels[self._dead :], rows[self._dead :])
            first = int(self._rows[0]) if self._count else 0
            in_a_row = not self._dead and np.array_equal(labels, np.arange(first, first + self._count))
            self._first = first if in_a_row and np.array_equal(rows, np.arange(self._count)) else None
            self._lookup = lookup
        return lookup

    def _forget(self) -> None:
        self._lookup = self._first = None
        self._bits = None
