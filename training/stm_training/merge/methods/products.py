"""Inner products of a parameter's base and deltas, in float64, the same whatever the blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks, WholeParameter, tile_bounds

_LANES = 1 << 13


def inner_products(blocks: Blocks, used: Sequence[int], *, with_base: bool) -> NDArray[np.float64]:
    """Gram matrix of the base and some deltas: all that angles and lengths in their span depend on.

    Number ``i`` of a parameter is added to lane ``i mod 8192``, one after the other; the lanes' sum is
    rounded once. The product of two float32 numbers is exact in float64. So no bit depends on how the
    parameter is cut.

    Args:
        blocks: Makes a pass over the parameter.
        used: Places of the members that count.
        with_base: Whether the base counts too; it then comes first.

    Returns:
        (m, m) float64, symmetric.
    """
    rows = [-1, *used] if with_base else list(used)
    pairs = list(itertools.combinations_with_replacement(range(len(rows)), 2))
    if isinstance(blocks, WholeParameter):
        keys = [None if row < 0 else blocks.keys[row] for row in rows]
        names = {pair: ("product", frozenset((keys[pair[0]], keys[pair[1]]))) for pair in pairs}
        missing = [pair for pair in pairs if names[pair] not in blocks.facts]
        found = _sums(blocks, rows, missing)
        blocks.facts.update({names[pair]: value for pair, value in found.items()})
        found = {pair: blocks.facts[names[pair]] for pair in pairs}
    else:
        found = _sums(blocks, rows, pairs)
    matrix = np.zeros((len(rows), len(rows)))
    for (left, right), value in found.items():
        matrix[left, right] = matrix[right, left] = value
    return matrix


def _sums(
    blocks: Blocks, rows: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    if not pairs:
        return {}
    sums = [torch.zeros(_LANES, dtype=torch.float64) for _ in pairs]
    wanted = sorted({row for pair in pairs for row in pair})
    for block in blocks():
        flat = {row: _row(block, rows[row]) for row in wanted}
        sums = [lanes.to(block.base.device) for lanes in sums]
        for begin, end in tile_bounds(block.offset, block.base.numel(), _LANES):
            first = (block.offset + begin) % _LANES
            wide = {row: numbers[begin:end].double() for row, numbers in flat.items()}
            for lanes, (left, right) in zip(sums, pairs, strict=True):
                lanes[first : first + end - begin].addcmul_(wide[left], wide[right])
    return {pair: math.fsum(lanes.tolist()) for pair, lanes in zip(pairs, sums, strict=True)}


def _row(block: Block, row: int) -> Tensor:
    return (block.base if row < 0 else block.deltas[row]).reshape(-1)
