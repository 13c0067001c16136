"""Batches in which every other row's positive is a true negative."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import count

from torch.utils.data import Sampler

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair
from stm_training.finetune.batch_plans import plan_batches
from stm_training.finetune.mixing import Rows
from stm_training.finetune.pair_keys import row_table

_MUCH = 0.1  # a share of the rows that is worth a warning when it fills no batch

logger = logging.getLogger(__name__)


class NoDuplicatesBatchSampler(Sampler[list[int]]):
    """Full batches without two rows of the same document or query, one seeded epoch after the other.

    A row that conflicts waits for the next batch; rows left over at the end of an epoch that fill no batch
    are left out of that epoch. The batches depend on the pairs, the batch size, the seed and the choice of
    sources alone: every process of a distributed training sees the same global batches, and a training that
    is resumed sees those that it had not seen.

    Args:
        pairs: The training rows; read once, in order, and not kept.
        batch_size: Rows per batch over all processes, at least 2: each row's negatives are the others.
        seed: Seeds the order of every epoch.
        steps: Number of batches to yield, over as many epochs as it takes; ``None``: ``epochs`` epochs.
        epochs: Passes over the pairs where ``steps`` is ``None``.
        homogeneous: Batches of one ``source`` each, as many per source as its rows fill; all shuffled.
        source_temperature: Draw the source (of each row, or of each homogeneous batch) in proportion to
            size^(1/this); each source goes through seeded passes of its own. An epoch is then as many draws
            as it takes for as many rows as there are. ``None``: every row at most once per epoch.

    Raises:
        ConfigError: If the batch size is below 2 or the temperature not above 0.
        TrainingError: If the pairs, or a source that has to, cannot fill a single batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        seed: int,
        steps: int | None = None,
        epochs: int = 1,
        homogeneous: bool = False,
        source_temperature: float | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        if batch_size < 2:
            message = f"batch_size is {batch_size}, but a row's negatives are the others. Set 2 or more."
            raise ConfigError(message)
        if source_temperature is not None and not source_temperature > 0:
            message = (
                f"source_temperature is {source_temperature}, but sources are drawn by size^(1/temperature). "
                "Set 1 (in proportion to size) or more, or null."
            )
            raise ConfigError(message)
        table = row_table(pairs)
        self._rows = len(table)
        self._plan = plan_batches(
            table,
            batch_size=batch_size,
            seed=seed,
            homogeneous=homogeneous,
            source_temperature=source_temperature,
        )
        self._sizes: dict[int, int] = {}  # batches of each epoch, as far as known
        self._last: tuple[int, Rows] | None = None
        # draws of few rows may miss a full batch in one epoch; the next one then has it
        self._length = (
            steps if steps is not None else max(1, sum(self._size(number) for number in range(epochs)))
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        return self.after(0)

    def after(self, batches: int) -> Iterator[list[int]]:
        """The batches behind the first ``batches`` ones, exactly as an iteration from the start has them.

        No pair is read, and of whole epochs before only the batches are counted.
        """
        left = max(0, self._length - batches)
        for number in count():
            if left == 0:
                return
            if batches >= (size := self._size(number)):
                batches -= size
                continue
            rows = self._batches(number)[batches : batches + left]
            batches, left = 0, left - len(rows)
            yield from map(_as_list, rows)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one pass over the pairs."""
        batches: list[list[int]] = self._batches(number).tolist()
        return batches

    def _size(self, number: int) -> int:
        if number not in self._sizes:
            self._batches(number)
        return self._sizes[number]

    def _batches(self, number: int) -> Rows:
        """(batches, batch_size) int64; the last epoch that was asked for is kept."""
        if self._last is None or self._last[0] != number:
            batches = self._plan.batches(number)
            if number == 0 and number not in self._sizes:
                self._warn(batches.size)
            self._sizes[number] = len(batches)
            self._last = (number, batches)
        return self._last[1]

    def _warn(self, used: int) -> None:
        left_out = self._rows - used
        # less than a batch is always left at the end
        if left_out >= self.batch_size and left_out > _MUCH * self._rows:
            logger.warning(
                "%d of %d pairs fill no batch of %d in the first pass: too many share a document or a query, "
                "or a source's last rows are too few. A smaller batch_size uses more of them.",
                left_out,
                self._rows,
                self.batch_size,
            )


def _as_list(batch: Rows) -> list[int]:
    rows: list[int] = batch.tolist()
    return rows
