"""Batches in which every other row's positive is a true negative."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from torch.utils.data import Sampler

from stm_retriever.errors import ConfigError, TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.pair_keys import Key, row_keys


class NoDuplicatesBatchSampler(Sampler[list[int]]):
    """Full batches without two rows of the same document or query, one seeded epoch after the other.

    A row that conflicts waits for the next batch; rows left over at the end of an epoch that fill no batch
    are left out of that epoch. The batches depend on the pairs, the batch size and the seed alone.

    Args:
        pairs: The training rows.
        batch_size: Rows per batch, at least 2: each row's negatives are the others.
        seed: Seeds the order of every epoch.
        steps: Number of batches to yield, over as many epochs as it takes; ``None``: ``epochs`` epochs.
        epochs: Passes over the pairs where ``steps`` is ``None``.

    Raises:
        ConfigError: If the batch size is below 2.
        TrainingError: If the pairs cannot fill a single batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        seed: int,
        steps: int | None = None,
        epochs: int = 1,
    ) -> None:
        self._keys = [row_keys(pair) for pair in pairs]
        self.batch_size = batch_size
        self.seed = seed
        if batch_size < 2:
            message = f"batch_size is {batch_size}, but a row's negatives are the others. Set 2 or more."
            raise ConfigError(message)
        if not self.epoch(0):
            message = (
                f"{len(pairs)} pairs cannot fill one batch of {batch_size} rows of different documents and "
                f"queries (one pass finds {len(self._fill(deque(range(len(pairs)))))}). Add pairs, or lower "
                f"batch_size."
            )
            raise TrainingError(message)
        self._length = (
            steps if steps is not None else sum(len(self.epoch(number)) for number in range(epochs))
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._endless(), self._length)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one pass over the pairs."""
        order = list(range(len(self._keys)))
        random.Random(f"{self.seed}/{number}").shuffle(order)
        queue = deque(order)
        batches: list[list[int]] = []
        while len(batch := self._fill(queue)) == self.batch_size:
            batches.append(batch)
        return batches

    def _endless(self) -> Iterator[list[int]]:
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1

    def _fill(self, queue: deque[int]) -> list[int]:
        """Take the first rows that go together off the queue; the others keep their place in it."""
        batch: list[int] = []
        waiting: list[int] = []
        seen: set[Key] = set()
        while queue and len(batch) < self.batch_size:
            row = queue.popleft()
            if seen.isdisjoint(self._keys[row]):
                batch.append(row)
                seen |= self._keys[row]
            else:
                waiting.append(row)
        queue.extendleft(reversed(waiting))
        return batch
