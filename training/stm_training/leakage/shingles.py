"""Texts as sets of hashed word 3-shingles, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from stm_training.data.leakage import tokens

WIDTH = 3
HASH_BITS = 40
"""Bits of a shingle's hash. Two texts of n shingles each share one by mere chance in n*n/2^40 cases: for
n = 200 once in 27 million pairs. The other 24 bits number texts or pairs, so that one sort serves many."""

NUMBERS = 1 << (64 - HASH_BITS)
Hashes = NDArray[np.uint64]
_CHUNK = 4096  # texts; 4,096 passages of 150 words are 5 MB of hashes
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


@dataclass(frozen=True)
class Shingled:
    """The shingle sets of many texts, one after the other.

    Attributes:
        hashes: Hashes below ``2**HASH_BITS``, ascending and distinct within a text, shape (total,).
        starts: Where each text begins, and the end: shape (texts + 1,).
    """

    hashes: Hashes
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Shingles of each text; 0 for one of fewer than three words."""
        return np.diff(self.starts)


class Shingler:
    """Turns texts into shingle sets; those of one shingler can be compared with each other."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> Shingled:
        """The shingle sets of some texts, in their order."""
        parts, sizes = [], []
        for start in range(0, len(texts), _CHUNK):
            hashes, counts = self._chunk(texts[start : start + _CHUNK])
            parts.append(hashes)
            sizes.append(counts)
        starts = np.zeros(len(texts) + 1, np.int64)
        if sizes:
            np.cumsum(np.concatenate(sizes), out=starts[1:])
        return Shingled(np.concatenate(parts) if parts else np.empty(0, np.uint64), starts)

    def _chunk(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        words = [tokens(text) for text in texts]
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        numbers = self._number(chain.from_iterable(words), int(lengths.sum()))
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
        if len(numbers) < WIDTH:
            return np.empty(0, np.uint64), np.zeros(len(texts), np.int64)
        last = len(numbers) - WIDTH + 1
        mixed = np.zeros(last, np.uint64)
        for place, odd in enumerate(_ODD):
            mixed += numbers[place : place + last] * np.uint64(odd)
        inside = owner[:last] == owner[WIDTH - 1 :]  # three words of one text
        keyed = (owner[:last][inside] << np.uint64(HASH_BITS)) | (
            _mix(mixed[inside]) >> np.uint64(64 - HASH_BITS)
        )
        keyed.sort()
        distinct = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])] if len(keyed) else keyed
        counts = np.bincount((distinct >> np.uint64(HASH_BITS)).astype(np.int64), minlength=len(texts))
        return distinct & np.uint64((1 << HASH_BITS) - 1), counts.astype(np.int64)

    def _number(self, words: Iterable[str], count: int) -> Hashes:
        """The words' numbers, in order of first sight."""
        known = self._numbers
        return np.fromiter((known.setdefault(word, len(known) + 1) for word in words), np.uint64, count)


def _mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): every bit of the input moves every bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
