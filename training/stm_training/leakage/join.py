"""Which texts of two collections are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stm_training.leakage.minhash import BANDS, band_keys
from stm_training.leakage.shingles import HASH_BITS, Hashes, Shingled

Places = NDArray[np.int64]
_PAIRS_AT_ONCE = 1 << 20
_HASHES_AT_ONCE = 1 << 22
_EPSILON = 1e-9  # 4 of 5 is .8, whatever the last bit says


@dataclass(frozen=True)
class Matches:
    """For each text of two collections, a partner in the other one.

    Attributes:
        left: Place of a near duplicate in the right collection, or -1: shape (left texts,).
        left_jaccard: The pair's Jaccard similarity, 0 without a partner.
        right: Place of a near duplicate in the left collection, or -1: shape (right texts,).
        right_jaccard: As for ``left``.
    """

    left: Places
    left_jaccard: NDArray[np.float64]
    right: Places
    right_jaccard: NDArray[np.float64]


class Prepared:
    """Shingle sets with their band keys, each different set once; made once, joined many times.

    Args:
        sets: Shingle sets; empty ones take no part.
        threads: How many threads hash at once.
    """

    def __init__(self, sets: Shingled, *, threads: int = 2) -> None:
        filled = np.flatnonzero(sets.sizes)
        whole = (
            np.add.reduceat(sets.hashes * sets.hashes * np.uint64(0x9E3779B97F4A7C15), sets.starts[filled])
            if len(filled)
            else np.empty(0, np.uint64)
        )
        _, first, group = np.unique(
            whole + sets.sizes[filled].astype(np.uint64), return_index=True, return_inverse=True
        )
        self.size = len(sets)
        self.texts: Places = filled
        self.group: Places = group.reshape(-1)
        self.representative: Places = filled[first]
        self.sets = _taken(sets, self.representative)
        self.keys = band_keys(self.sets, threads=threads)


def near_duplicates(left: Prepared, right: Prepared, *, threshold: float = 0.8) -> Matches:
    """Find partners whose shingle sets have at least a Jaccard similarity.

    A pair at the threshold is met with probability .9992 (see :mod:`stm_training.leakage.minhash`), a more
    similar one more surely; what is met is compared in full, so nothing below the threshold is found.

    Args:
        left: One collection; both must come from one shingler.
        right: The other.
        threshold: Jaccard similarity from 0 (exclusive) to 1.

    Returns:
        A partner for each text that has one: the most similar of those looked at. Where whole families of
        texts resemble each other, not every pair is looked at, but every text that has a partner gets one.
    """
    best = (_Best(len(left.sets)), _Best(len(right.sets)))
    for band in range(BANDS):
        for ours, theirs in _meetings(left.keys[:, band], right.keys[:, band]):
            known = (best[0].partner[ours] >= 0) & (best[1].partner[theirs] >= 0)
            known |= (left.keys[ours, :band] == right.keys[theirs, :band]).any(axis=1)  # compared before
            ours, theirs = ours[~known], theirs[~known]
            for some in _slices(left.sets.sizes[ours] + right.sets.sizes[theirs]):
                jaccard = _jaccard(left.sets, right.sets, ours[some], theirs[some])
                alike = jaccard >= threshold - _EPSILON
                best[0].offer(ours[some][alike], theirs[some][alike], jaccard[alike])
                best[1].offer(theirs[some][alike], ours[some][alike], jaccard[alike])
    return Matches(*_spread(best[0], left, right), *_spread(best[1], right, left))


class _Best:
    """The most similar partner so far."""

    def __init__(self, count: int) -> None:
        self.partner: Places = np.full(count, -1, np.int64)
        self.jaccard = np.zeros(count)

    def offer(self, ours: Places, theirs: Places, jaccard: NDArray[np.float64]) -> None:
        order = np.argsort(
            jaccard, kind="stable"
        )  # of several for one text the last written, the best, stays
        ours, theirs, jaccard = ours[order], theirs[order], jaccard[order]
        better = jaccard > self.jaccard[ours]
        self.partner[ours[better]] = theirs[better]
        self.jaccard[ours[better]] = jaccard[better]


def _spread(best: _Best, own: Prepared, other: Prepared) -> tuple[Places, NDArray[np.float64]]:
    """From the different sets back to all texts."""
    partner, jaccard = np.full(own.size, -1, np.int64), np.zeros(own.size)
    found = best.partner[own.group]
    has = found >= 0
    partner[own.texts[has]] = other.representative[found[has]]
    jaccard[own.texts[has]] = best.jaccard[own.group][has]
    return partner, jaccard


def _meetings(left: Hashes, right: Hashes) -> Iterator[tuple[Places, Places]]:
    """Places of equal keys, some at a time: first one partner for each on the right, then more and more.

    So each member of a large bucket soon has a partner, and the rest of its pairs need no comparison.
    """
    order = np.argsort(left, kind="stable")
    ordered = left[order]
    low = np.searchsorted(ordered, right, side="left")
    counts = np.searchsorted(ordered, right, side="right") - low
    first, most = 0, int(counts.max(initial=0))
    while first < most:
        width = max(1, first)
        meeting = np.flatnonzero(counts > first)
        for some in _slices(np.minimum(counts[meeting] - first, width), most=_PAIRS_AT_ONCE):
            rows = meeting[some]
            number = np.minimum(counts[rows] - first, width)
            before = np.repeat(np.cumsum(number) - number, number)
            rows, each = np.repeat(rows, number), np.repeat(counts[rows], number)
            inside = (np.arange(len(before)) - before + first + rows) % each  # another start for every row
            yield order[low[rows] + inside], rows
        first += width


def _slices(costs: Places, most: int = _HASHES_AT_ONCE) -> Iterator[slice]:
    """Cut so that each slice costs about ``most`` (at least one item each)."""
    total = np.cumsum(costs)
    first = 0
    while first < len(costs):
        spent = int(total[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(total, spent + most, side="right")))
        yield slice(first, last)
        first = last


def _jaccard(left: Shingled, right: Shingled, ours: Places, theirs: Places) -> NDArray[np.float64]:
    """Jaccard similarity of each pair, shape (pairs,)."""
    sizes = left.sizes[ours], right.sizes[theirs]
    both = np.concatenate([_numbered(left, ours), _numbered(right, theirs)])
    both.sort()
    twice = both[1:][both[1:] == both[:-1]]
    shared = np.bincount((twice >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(ours))
    return np.asarray(shared / (sizes[0] + sizes[1] - shared))


def _numbered(sets: Shingled, places: Places) -> Hashes:
    """The hashes of some sets, with the pair's number in the upper bits."""
    taken = _taken(sets, places)
    number = np.repeat(np.arange(len(places), dtype=np.uint64), taken.sizes)
    return (number << np.uint64(HASH_BITS)) | taken.hashes


def _taken(sets: Shingled, places: Places) -> Shingled:
    sizes = sets.sizes[places]
    starts = np.zeros(len(places) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    inside = np.arange(starts[-1]) + np.repeat(sets.starts[:-1][places] - starts[:-1], sizes)
    return Shingled(sets.hashes[inside], starts)
