"""MinHash signatures cut into bands, so that similar sets meet in a bucket (locality-sensitive hashing).

Broder 1997, "On the resemblance and containment of documents"; bands after Leskovec, Rajaraman, Ullman,
"Mining of massive datasets", section 3.4. Two sets with Jaccard similarity s meet with the probability
1 - (1 - s^ROWS)^BANDS: .9992 at .8, .77 at .6, .04 at .3. What meets is then compared exactly.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stm_training.leakage.shingles import Hashes, Shingled

ROWS, BANDS = 5, 18
_BLOCK = 1 << 16  # hashes worked on at once: half a megabyte stays in the cache
_SEED = 20260205


def band_keys(sets: Shingled, *, threads: int = 2) -> Hashes:
    """One key per set and band; sets meet where a key is the same.

    Args:
        sets: Shingle sets; every one must hold something.
        threads: How many work at once; numpy lets go of the interpreter's lock meanwhile.

    Returns:
        Keys, shape (sets, BANDS).
    """
    keys = np.empty((len(sets), BANDS), np.uint64)
    if not len(sets):
        return keys
    factors, offsets = _family()
    bounds = _blocks(sets)

    def work(block: tuple[int, int]) -> None:
        first, last = block
        hashes = sets.hashes[sets.starts[first] : sets.starts[last]]
        inside = sets.starts[first:last] - sets.starts[first]
        moved = np.empty_like(hashes)
        key = np.empty(last - first, np.uint64)
        for band in range(BANDS):
            key[:] = band
            for row in range(ROWS):
                place = band * ROWS + row
                np.multiply(hashes, factors[place], out=moved)
                np.add(moved, offsets[place], out=moved)
                key *= np.uint64(0x9E3779B97F4A7C15)
                key ^= np.minimum.reduceat(moved, inside) >> np.uint64(7)
            keys[first:last, band] = key

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds))
    return keys


def _family() -> tuple[Hashes, Hashes]:
    """Multiply-add hashes modulo 2^64; the shingles' own hashes are already well mixed."""
    draw = np.random.default_rng(_SEED)
    count = ROWS * BANDS
    factors = draw.integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return factors, draw.integers(0, 1 << 63, count, dtype=np.uint64)


def _blocks(sets: Shingled) -> list[tuple[int, int]]:
    bounds, first = [], 0
    while first < len(sets):
        full = int(np.searchsorted(sets.starts, sets.starts[first] + _BLOCK, side="right")) - 1
        last = min(len(sets), max(first + 1, full))
        bounds.append((first, last))
        first = last
    return bounds
