"""Spherical interpolation of flattened parameters, pair by pair (Shoemake 1985, section 3.3).

Every point that SLERP reaches is a sum of its ends, with factors that depend on the angle between them. So
one pass for the inner products gives the factors on base and deltas, and the merge itself is one sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks
from stm_training.merge.methods.products import inner_products
from stm_training.merge.methods.sums import add_up, canonical_order
from stm_training.merge.recipe import MergeRecipe

# Below this angle (radians) arc and chord differ by less than float32 can tell: angle^2 / 8 of the length.
_STRAIGHT = 1e-4

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """A point in the span of base and deltas: ``base + own * base + sum of parts * deltas``."""

    own: float
    parts: tuple[float, ...]


def slerp_factors(cosine: float, position: float) -> tuple[float, float]:
    """Factors on the two ends of an arc.

    Args:
        cosine: Of the angle between the ends.
        position: 0 for the first end, 1 for the second.

    Returns:
        Factor on the first end and on the second; those of the straight line between (anti)parallel ends.
    """
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if position in (0.0, 1.0) or min(angle, math.pi - angle) < _STRAIGHT:
        return 1 - position, position
    return math.sin((1 - position) * angle) / math.sin(angle), math.sin(position * angle) / math.sin(angle)


class Slerp:
    """SLERP of two members, and of more in sequence.

    The members, first the base if ``base_weight`` is above 0, are taken in the recipe's order: the result so
    far, which carries the weight of all members in it, is interpolated with the next member at the position
    ``weight / (weight so far + weight)``. With two members this is SLERP; with more, the order matters, as
    the sphere has no mean that pairwise steps would reach in any order.
    """

    needs_statistics = True

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]) -> Factors:
        """Factors on base and deltas, from the angles between the members."""
        used = [place for place, weight in enumerate(weights) if weight > 0]
        parts = [0.0] * len(weights)
        if len(used) + (recipe.base_weight > 0) < 2:
            for place in used:
                parts[place] = 1.0
            return Factors(0.0, tuple(parts))
        gram = inner_products(blocks, used, with_base=True)
        ends = [(recipe.base_weight, _unit(0, len(used)))] if recipe.base_weight > 0 else []
        ends += [(weights[place], _unit(1 + row, len(used))) for row, place in enumerate(used)]
        point = _fold(ends, gram)
        for row, place in enumerate(used):
            parts[place] = float(point[1 + row])
        return Factors(float(point[0]), tuple(parts))

    def merge(
        self, block: Block, recipe: MergeRecipe, weights: Sequence[float], statistics: Factors, *, name: str
    ) -> Tensor:
        """The sum with those factors."""
        return add_up(block, statistics.parts, canonical_order(recipe), own=statistics.own)


class NearerToBase:
    """Blocks whose experts were moved along the arc towards the base, before they are merged.

    MediPhi (arXiv 2505.10717): every expert is merged with the base by SLERP first.

    Args:
        blocks: The experts as they are.
        positions: Where each goes: 0 is the base, 1 the expert itself.
    """

    def __init__(self, blocks: Blocks, positions: Sequence[float]) -> None:
        self._blocks = blocks
        self._factors = [
            None if position == 1 else _towards(blocks, place, position)
            for place, position in enumerate(positions)
        ]

    def __call__(self) -> Iterator[Block]:
        """One pass."""
        for block in self._blocks():
            yield Block(
                base=block.base,
                deltas=[self._delta(block, place) for place in range(len(block.deltas))],
                offset=block.offset,
                members=[
                    known if factors is None else None
                    for known, factors in zip(
                        block.members or [None] * len(block.deltas), self._factors, strict=True
                    )
                ],
            )

    def _delta(self, block: Block, place: int) -> Tensor:
        factors = self._factors[place]
        delta = block.deltas[place]
        if factors is None:
            return delta
        moved = delta * factors[1]
        return moved.add_(block.base * factors[0]) if factors[0] else moved


def _towards(blocks: Blocks, place: int, position: float) -> tuple[float, float]:
    """Factors on base and delta that make the new delta."""
    if position == 0:
        return 0.0, 0.0
    point = _fold(
        [(1 - position, _unit(0, 1)), (position, _unit(1, 1))],
        inner_products(blocks, [place], with_base=True),
    )
    return float(point[0]), float(point[1])


def _unit(row: int, count: int) -> Vector:
    """A member as (own, parts): the base is all zeros, a member has 1 at its delta."""
    point = np.zeros(1 + count)
    if row:
        point[row] = 1.0
    return point


def _fold(ends: Sequence[tuple[float, Vector]], gram: Vector) -> Vector:
    """Interpolate members one after the other; points are (own, parts), as in :class:`Factors`."""
    so_far, point = ends[0]
    base = np.eye(len(gram))[0]
    for weight, end in ends[1:]:
        so_far += weight
        here, there = base + point, base + end
        lengths = math.sqrt(max(0.0, here @ gram @ here) * max(0.0, there @ gram @ there))
        cosine = float(here @ gram @ there) / lengths if lengths > 0 else 1.0
        left, right = slerp_factors(cosine, weight / so_far)
        point, own = left * point + right * end, left * (1 + point[0]) + right * (1 + end[0]) - 1
        # Along a chord the factors add up to 1; what rounding leaves of it is no share of the base.
        point[0] = 0.0 if abs(own) < 1e-15 else own
    return point
