"""Cutting an order of rows into batches without a document or query twice."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from stm_training.finetune.mixing import Rows

_BLOCK = 1 << 16  # rows turned into Python numbers at a time

_Waiting = tuple[int, int, Sequence[int]]  # place in the order, row, keys


def first_fit(order: Rows, keys: NDArray[np.uint64], size: int) -> Rows:
    """Cut an order of rows into batches in which no two rows share a key.

    Each batch takes the earliest rows left that go together: a row that conflicts waits for the next batch.
    Rows that fill no batch in the end are left out. Whatever the number of rows that share a key, a row
    costs O(log n): those that wait for the same key stand in one queue, and only its head is looked at.

    Args:
        order: (n,) int64 rows, in the order in which they are offered; a row may come several times.
        keys: (rows, k) uint64.
        size: Rows per batch.

    Returns:
        (batches, size) int64.
    """
    batches = _FirstFit(size)
    for row, row_keys in _offers(order, keys):
        batches.offer(row, row_keys)
    return np.array(batches.full, np.int64).reshape(-1, size)


def rows_together(order: Rows, keys: NDArray[np.uint64], size: int) -> int:
    """How many rows the first batch of an order finds; ``size`` at most."""
    batches = _FirstFit(size)
    for row, row_keys in _offers(order, keys):
        batches.offer(row, row_keys)
        if batches.full:
            return size
    return batches.open_rows


def _offers(order: Rows, keys: NDArray[np.uint64]) -> Iterator[tuple[int, list[int]]]:
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        yield from zip(block.tolist(), keys[block].tolist(), strict=True)


class _FirstFit:
    def __init__(self, size: int) -> None:
        self._size = size
        self._offered = 0
        self._batch: list[int] = []
        self._seen: set[int] = set()
        # Rows that wait for the batch in which a key is free again, earliest first; and the heads of these
        # queues, earliest first (a head that is no longer its queue's is passed over).
        self._waiting: dict[int, list[_Waiting]] = {}
        self._heads: list[tuple[int, int]] = []
        self.full = array("q")

    @property
    def open_rows(self) -> int:
        """Rows of the batch that is not full yet."""
        return len(self._batch)

    def offer(self, row: int, keys: Sequence[int]) -> None:
        """Take the next row of the order."""
        place = self._offered
        self._offered += 1
        if self._seen.isdisjoint(keys):
            self._take(row, keys)
            while len(self._batch) == self._size:
                self._close()
        else:
            self._wait((place, row, keys))

    def _take(self, row: int, keys: Sequence[int]) -> None:
        self._batch.append(row)
        self._seen.update(keys)

    def _wait(self, entry: _Waiting) -> None:
        key = next(key for key in entry[2] if key in self._seen)
        queue = self._waiting.setdefault(key, [])
        heappush(queue, entry)
        if queue[0] is entry:
            heappush(self._heads, (entry[0], key))

    def _close(self) -> None:
        """Keep the full batch and begin the next with the rows that wait, in their order."""
        self.full.extend(self._batch)
        self._batch = []
        self._seen = set()
        blocked: list[tuple[int, int]] = []
        while self._heads and len(self._batch) < self._size:
            place, key = heappop(self._heads)
            queue = self._waiting.get(key)
            if not queue or queue[0][0] != place:
                continue
            if key in self._seen:
                blocked.append((place, key))
                continue
            entry = heappop(queue)
            if queue:
                heappush(self._heads, (queue[0][0], key))
            else:
                del self._waiting[key]
            if self._seen.isdisjoint(entry[2]):
                self._take(entry[1], entry[2])
            else:
                self._wait(entry)
        for head in blocked:
            heappush(self._heads, head)
