"""Which rows meet in which batch, epoch by epoch: all sources mixed, or one source per batch."""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import TrainingError
from stm_training.finetune.first_fit import first_fit, rows_together
from stm_training.finetune.mixing import (
    Rows,
    SourceDraws,
    cycle,
    places_by_source,
    shuffled,
    source_shares,
)
from stm_training.finetune.pair_keys import RowTable

_SHOWN = 5


class BatchPlan(Protocol):
    """Batches by epoch; any epoch may be asked for at any time."""

    def batches(self, epoch: int) -> Rows:
        """(batches, batch_size) int64 rows of one epoch."""


def plan_batches(
    table: RowTable, *, batch_size: int, seed: int, homogeneous: bool, source_temperature: float | None
) -> BatchPlan:
    """Choose the plan and make sure that it can fill its batches.

    Args:
        table: The rows.
        batch_size: Rows per batch.
        seed: Seeds every order and draw.
        homogeneous: One source per batch.
        source_temperature: Draw sources by size^(1/this); ``None``: every row at most once per epoch.

    Returns:
        The plan.

    Raises:
        TrainingError: If the pairs, or a source that needs to, cannot fill a batch; with the counts.
    """
    found = rows_together(shuffled(f"{seed}/rows", 0, len(table)), table.keys, batch_size)
    if found < batch_size:
        message = (
            f"{len(table)} pairs cannot fill one batch of {batch_size} rows of different documents and "
            f"queries (one pass finds {found}). Add pairs, or lower batch_size."
        )
        raise TrainingError(message)
    if source_temperature is None:
        if homogeneous:
            _check_sources(table, [batch_size] * len(table.names), batch_size, homogeneous=True)
            return _OneSource(table, batch_size, seed)
        return _Mixed(table, batch_size, seed)
    shares = source_shares(table.sizes, source_temperature)
    if homogeneous:
        _check_sources(table, [batch_size] * len(table.names), batch_size, homogeneous=True)
        return _OneSourceDrawn(table, batch_size, seed, shares)
    needed = [round(share * batch_size) for share in shares]  # half a row less is not worth an error
    _check_sources(table, needed, batch_size, homogeneous=False)
    return _MixedDrawn(table, batch_size, seed, shares)


def _rows_of(table: RowTable, source: int) -> Rows:
    return np.flatnonzero(table.source == source).astype(np.int64)


def _check_sources(table: RowTable, needed: list[int], batch_size: int, *, homogeneous: bool) -> None:
    """Refuse sources that have too few different documents and queries for their part of a batch."""
    short = []
    for source, (name, least) in enumerate(zip(table.names, needed, strict=True)):
        rows = _rows_of(table, source)
        found = rows_together(rows, table.keys, least) if least else 0
        if found < least:
            short.append(f"{name!r}: {len(rows)} pairs, {found} of which go together, {least} are needed")
    if not short:
        return
    listed = "; ".join(short[:_SHOWN]) + (f"; and {len(short) - _SHOWN} more" if len(short) > _SHOWN else "")
    what, remedy = (
        ("homogeneous batches hold one source only", "set homogeneous to false")
        if homogeneous
        else ("source_temperature gives them a larger share of each batch", "lower source_temperature")
    )
    message = (
        f"{len(short)} of {len(table.names)} sources have too few pairs of different documents and queries "
        f"for batches of {batch_size}, and {what}. {listed}. Add pairs, lower batch_size, or {remedy}."
    )
    raise TrainingError(message)


class _Mixed:
    """Every row at most once per epoch, in one order over all sources."""

    def __init__(self, table: RowTable, batch_size: int, seed: int) -> None:
        self._table, self._size, self._seed = table, batch_size, seed

    def batches(self, epoch: int) -> Rows:
        order = shuffled(f"{self._seed}/rows", epoch, len(self._table))
        return first_fit(order, self._table.keys, self._size)


class _MixedDrawn:
    """A source is drawn for every row; each source goes through passes of its own, over all epochs."""

    def __init__(self, table: RowTable, batch_size: int, seed: int, shares: NDArray[np.float64]) -> None:
        self._table, self._size, self._seed = table, batch_size, seed
        self._rows = [_rows_of(table, source) for source in range(len(table.names))]
        self._draws = SourceDraws(shares, f"{seed}/row sources", len(table))

    def batches(self, epoch: int) -> Rows:
        drawn = self._draws.of_epoch(epoch)
        before = self._draws.before(epoch)
        order = np.empty(len(drawn), np.int64)
        for source, places in places_by_source(drawn, len(self._rows)):
            stream = f"{self._seed}/source/{self._table.names[source]}"
            order[places] = cycle(self._rows[source], stream, int(before[source]), len(places))
        return first_fit(order, self._table.keys, self._size)


class _OneSource:
    """Every row at most once per epoch; batches of one source each, all sources' batches shuffled."""

    def __init__(self, table: RowTable, batch_size: int, seed: int) -> None:
        self._seed = seed
        self._sources = [
            _SourceBatches(table, source, batch_size, seed) for source in range(len(table.names))
        ]

    def batches(self, epoch: int) -> Rows:
        found = np.concatenate([source.of_pass(epoch) for source in self._sources])
        return found[shuffled(f"{self._seed}/batches/{epoch}", 0, len(found))]


class _OneSourceDrawn:
    """A source is drawn for every batch; each source goes through passes of its own, over all epochs."""

    def __init__(self, table: RowTable, batch_size: int, seed: int, shares: NDArray[np.float64]) -> None:
        self._size = batch_size
        self._sources = [
            _SourceBatches(table, source, batch_size, seed) for source in range(len(table.names))
        ]
        self._draws = SourceDraws(shares, f"{seed}/batch sources", len(table) // batch_size)

    def batches(self, epoch: int) -> Rows:
        drawn = self._draws.of_epoch(epoch)
        before = self._draws.before(epoch)
        batches = np.empty((len(drawn), self._size), np.int64)
        for source, places in places_by_source(drawn, len(self._sources)):
            batches[places] = self._sources[source].take(int(before[source]), len(places))
        return batches


class _SourceBatches:
    """One source's batches, pass after pass; what fills no batch is left out of its pass."""

    def __init__(self, table: RowTable, source: int, batch_size: int, seed: int) -> None:
        self._keys = table.keys
        self._rows = _rows_of(table, source)
        self._size = batch_size
        self._stream = f"{seed}/source/{table.names[source]}"
        self._starts = [0]  # batches before each pass, and before the next one
        self._last: tuple[int, Rows] = (-1, np.empty((0, batch_size), np.int64))

    def of_pass(self, number: int) -> Rows:
        """(batches, batch_size) int64 rows of one pass."""
        if self._last[0] != number:
            order = self._rows[shuffled(self._stream, number, len(self._rows))]
            self._last = (number, first_fit(order, self._keys, self._size))
        return self._last[1]

    def take(self, start: int, count: int) -> Rows:
        """(count, batch_size) int64: batches ``start`` to ``start + count`` over all passes."""
        while self._starts[-1] <= start:
            self._extend()
        number = bisect_right(self._starts, start) - 1
        parts: list[Rows] = []
        while count > 0:
            if number + 1 == len(self._starts):
                self._extend()
            skipped = start - self._starts[number]
            part = self.of_pass(number)[skipped : skipped + count]
            parts.append(part)
            start, count, number = start + len(part), count - len(part), number + 1
        return np.concatenate(parts)

    def _extend(self) -> None:
        self._starts.append(self._starts[-1] + len(self.of_pass(len(self._starts) - 1)))
