"""Seeded orders of rows and sources that can be entered at any point.

Orders are sorts by a counter-based hash, so that pass 700 of a source costs no more than pass 0, and no
library's generator (whose stream may change with its version) decides what a resumed training sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stm_training.finetune.pair_keys import hash_key

Rows = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROWS_AT_ONCE = 1 << 20  # sorted in one go, where a small source is cycled through many times


def random_bits(stream: str, start: int, count: int) -> NDArray[np.uint64]:
    """Numbers ``start`` to ``start + count`` of a seeded stream: SplitMix64 (Steele et al. 2014, section 4).

    Args:
        stream: Names the stream, seed included; other names give unrelated numbers.
        start: Place of the first number.
        count: How many.

    Returns:
        (count,) uint64.
    """
    state = np.arange(start, start + count, dtype=np.uint64) * _GOLDEN + np.uint64(hash_key("stream", stream))
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def uniforms(stream: str, start: int, count: int) -> NDArray[np.float64]:
    """(count,) float64 in [0, 1): see :func:`random_bits`."""
    return (random_bits(stream, start, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(stream: str, number: int, count: int) -> Rows:
    """(count,) int64: order number ``number`` of ``range(count)``."""
    return np.argsort(random_bits(stream, number * count, count), kind="stable").astype(np.int64)


def source_shares(sizes: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """(s,) float64: each source's share, in proportion to size^(1/temperature).

    1 draws every row alike; the higher, the more alike the sources (Raffel et al. 2020, arXiv 1910.10683,
    section 3.5.2, temperature-scaled mixing).
    """
    logits = np.log(sizes.astype(np.float64)) / temperature
    weights = np.exp(logits - logits.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def draw_sources(shares: NDArray[np.float64], stream: str, start: int, count: int) -> NDArray[np.int64]:
    """(count,) int64: draws ``start`` to ``start + count`` of a source each, by their shares."""
    borders = np.cumsum(shares)[:-1]
    return np.searchsorted(borders, uniforms(stream, start, count), side="right").astype(np.int64)


def cycle(rows: Rows, stream: str, start: int, count: int) -> Rows:
    """Places ``start`` to ``start + count`` of endless passes over ``rows``, each in an order of its own.

    Args:
        rows: (r,) int64, at least one.
        stream: Names the passes, seed included.
        start: Place of the first row, counted over all passes.
        count: How many.

    Returns:
        (count,) int64.
    """
    size = len(rows)
    first, last = start // size, -(-(start + count) // size)
    step = max(1, _ROWS_AT_ONCE // size)
    parts = [
        rows[_passes(stream, number, min(number + step, last), size)] for number in range(first, last, step)
    ]
    return np.concatenate([rows[:0], *parts])[start - first * size :][:count]


def _passes(stream: str, first: int, last: int, size: int) -> Rows:
    """Passes ``first`` to ``last``, one after the other; each equals ``shuffled(stream, number, size)``."""
    bits = random_bits(stream, first * size, (last - first) * size).reshape(last - first, size)
    return np.argsort(bits, axis=1, kind="stable").astype(np.int64).ravel()


class SourceDraws:
    """Draws of sources, counted per epoch: where an epoch's draws of each source begin in its passes.

    Args:
        shares: (s,) float64, summing to 1.
        stream: Names the draws, seed included.
        per_epoch: Draws of one epoch.
    """

    def __init__(self, shares: NDArray[np.float64], stream: str, per_epoch: int) -> None:
        self._shares = shares
        self._stream = stream
        self._per_epoch = per_epoch
        self._before: list[NDArray[np.int64]] = [np.zeros(len(shares), np.int64)]

    def of_epoch(self, number: int) -> NDArray[np.int64]:
        """(per_epoch,) int64: the sources drawn in an epoch, in order."""
        return draw_sources(self._shares, self._stream, number * self._per_epoch, self._per_epoch)

    def before(self, number: int) -> NDArray[np.int64]:
        """(s,) int64: how often each source was drawn in the epochs before this one."""
        while len(self._before) <= number:
            counts = np.bincount(self.of_epoch(len(self._before) - 1), minlength=len(self._shares))
            self._before.append(self._before[-1] + counts)
        return self._before[number]


def places_by_source(drawn: NDArray[np.int64], sources: int) -> Iterator[tuple[int, Rows]]:
    """Yield each source that was drawn with the places of its draws, ascending."""
    order = np.argsort(drawn, kind="stable").astype(np.int64)
    borders = np.searchsorted(drawn[order], np.arange(sources + 1))
    for source in range(sources):
        places = order[borders[source] : borders[source + 1]]
        if len(places):
            yield source, places
