"""The k numbers of a tensor that are largest in magnitude, exactly, in constant memory, in two passes.

Float32 magnitudes sort as the integers of their bits. The first pass counts them by the upper 15 of these 31
bits; that finds the bucket with the k-th largest. The second pass counts the lower 16 bits within it. Where
several numbers share the k-th magnitude, the first ones by position are taken, so that it is k in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks, WholeParameter, tile_bounds

_UPPER = 1 << 15
_LOWER = 1 << 16
_MAGNITUDE = np.int32(0x7FFFFFFF)
_COUNTED_AT_ONCE = 1 << 18

Bits = NDArray[np.int32]
Wanted = tuple[int, int]
"""Place of a member, and how many of its numbers: the largest."""


@dataclass(frozen=True)
class Cut:
    """The largest numbers of one member.

    Attributes:
        threshold: Magnitude of the last one.
        quota: How many of those at the threshold are taken, first by position; ``None``: all.
        before: How many at the threshold lie before a block, by its offset; where ``quota`` is a number.
    """

    threshold: float
    quota: int | None = None
    before: Mapping[int, int] | None = None


NOTHING = Cut(float("inf"))
EVERYTHING = Cut(0.0)


class Taken:
    """Takes from a block, tile by tile in order, the numbers that lie within a cut.

    Args:
        cut: The cut.
        block: The block.
    """

    def __init__(self, cut: Cut, block: Block) -> None:
        self._cut = cut
        self._seen = 0 if cut.before is None else cut.before[block.offset]
        # hardshrink keeps what is above its bound; "at least the threshold" is "above the float before it".
        self._below = float(np.nextafter(np.float32(cut.threshold), np.float32(0)))

    def of(self, numbers: Tensor) -> Tensor:
        """The (n,) numbers of the next tile, with zeros for those outside of the cut."""
        threshold, quota = self._cut.threshold, self._cut.quota
        if threshold == 0:
            return numbers
        if quota is None:
            return numbers.hardshrink(self._below)
        if self._seen >= quota:
            return numbers.hardshrink(threshold)
        at = numbers.abs() == threshold
        left = quota - self._seen
        count = int(at.sum())
        self._seen += count
        if count <= left:
            return numbers.hardshrink(self._below)
        return numbers.hardshrink(threshold) + numbers * (at & (at.cumsum(0) <= left))


def find_cuts(blocks: Blocks, size: int, wanted: Sequence[Wanted]) -> dict[Wanted, Cut]:
    """Find thresholds.

    Args:
        blocks: Makes a pass over the parameter.
        size: Count of numbers in the parameter.
        wanted: Members and counts; any number of each.

    Returns:
        A cut for each.
    """
    cuts = {(place, count): NOTHING if count <= 0 else EVERYTHING for place, count in wanted}
    between = [(place, count) for place, count in cuts if 0 < count < size]
    if not between:
        return cuts
    upper = _upper_counts(blocks, sorted({place for place, _ in between}))
    buckets = {want: upper[want[0]].holding(want[1]) for want in between}
    lower = _lower_counts(blocks, {(place, buckets[place, count][0]) for place, count in between})
    for want in between:
        bucket, rank = buckets[want]
        cuts[want] = _cut(bucket, rank, lower[want[0], bucket])
    return cuts


@dataclass(frozen=True)
class _Counts:
    """How often each key occurs; keys ascending, those that do not occur left out."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Bits, size: int) -> _Counts:
        """Count (n,) keys below ``size``."""
        if len(keys) < size:
            values, counts = np.unique(keys.astype(np.int64), return_counts=True)
            return cls(values, counts.astype(np.int64))
        dense = torch.bincount(torch.from_numpy(keys), minlength=size).numpy()  # numpy's would copy to int64
        found = np.flatnonzero(dense)
        return cls(found, dense[found])

    @classmethod
    def total(cls, parts: Sequence[_Counts]) -> _Counts:
        """Add up."""
        if len(parts) == 1:
            return parts[0]
        keys, inverse = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, np.concatenate([part.counts for part in parts]))
        return cls(keys, counts)

    def at(self, key: int) -> int:
        """Count of one key."""
        return int(self.counts[self.keys == key].sum())

    def holding(self, rank: int) -> tuple[int, int]:
        """Key of the ``rank``-th largest (from 1), and its rank among those of that key."""
        from_top = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(from_top, rank))
        return int(self.keys[len(self.keys) - 1 - place]), rank - (int(from_top[place - 1]) if place else 0)


def _upper_counts(blocks: Blocks, places: Sequence[int]) -> dict[int, _Counts]:
    """Counts by the upper bits, by member; kept where the parameter is held in memory."""
    whole = blocks if isinstance(blocks, WholeParameter) else None
    facts = {} if whole is None else whole.facts
    names = {place: ("upper bits", place if whole is None else whole.keys[place]) for place in places}
    missing = [place for place in places if names[place] not in facts]
    parts: dict[int, list[_Counts]] = defaultdict(list)
    for block in blocks() if missing else ():
        for place in missing:
            counted = [_Counts.of(bits >> 16, _UPPER) for bits in _magnitude_bits(block, place)]
            parts[place].append(_Counts.total(counted))
    for place in missing:
        facts[names[place]] = _Counts.total(parts[place])
    return {place: facts[names[place]] for place in places}


def _lower_counts(
    blocks: Blocks, wanted: set[tuple[int, int]]
) -> dict[tuple[int, int], list[tuple[int, _Counts]]]:
    """Counts by the lower bits of a member's numbers in a bucket, block by block with its offset."""
    found: dict[tuple[int, int], list[tuple[int, _Counts]]] = defaultdict(list)
    for block in blocks():
        for place in sorted({place for place, _ in wanted}):
            hits: dict[int, list[Bits]] = {bucket: [] for member, bucket in wanted if member == place}
            for bits in _magnitude_bits(block, place):
                for bucket, tiles in hits.items():
                    tiles.append(bits[(bits >> 16) == bucket] & 0xFFFF)
            for bucket, tiles in hits.items():
                found[place, bucket].append((block.offset, _Counts.of(np.concatenate(tiles), _LOWER)))
    return found


def _cut(bucket: int, rank: int, parts: Sequence[tuple[int, _Counts]]) -> Cut:
    total = _Counts.total([part for _, part in parts])
    lower, quota = total.holding(rank)
    threshold = float(np.array((bucket << 16) | lower, np.uint32).view(np.float32))
    if threshold == 0 or quota == total.at(lower):  # to take or to leave a zero is the same
        return Cut(threshold)
    before, seen = {}, 0
    for offset, part in parts:
        before[offset] = seen
        seen += part.at(lower)
    return Cut(threshold, quota, before)


def _magnitude_bits(block: Block, place: int) -> Iterator[Bits]:
    # numpy compares and selects several times as fast as torch, on one core.
    flat = block.deltas[place].reshape(-1)
    for begin, end in tile_bounds(block.offset, len(flat), _COUNTED_AT_ONCE):
        yield flat[begin:end].cpu().numpy().view(np.int32) & _MAGNITUDE
