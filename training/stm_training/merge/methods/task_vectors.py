"""Merges of deltas of which only a part is taken: summed up, or averaged where the signs agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks, Tile, merge_by_tiles
from stm_training.merge.methods.selections import Selection
from stm_training.merge.methods.sums import canonical_order
from stm_training.merge.recipe import MergeRecipe

_NO_SHARE = 1e-38  # below any share of weights that float32 holds in full


class TaskVectors:
    """Choose numbers of each delta, bring them together, scale, and add to the base.

    Args:
        selection: Which numbers are taken.
        elect: ``False``: the weighted sum. ``True``: the weighted mean of those that have the sign of the
            weighted sum (TIES, Yadav et al. 2023, arXiv 2306.01708, algorithm 1, with a weight per expert).
    """

    def __init__(self, selection: Selection, *, elect: bool) -> None:
        self._selection = selection
        self._elect = elect

    @property
    def needs_statistics(self) -> bool:
        """Whether the selection depends on all numbers of a parameter."""
        return self._selection.needs_statistics

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]) -> Any:
        """What the selection needs to know, for the members whose weight is not 0."""
        return self._selection.statistics(blocks, size, recipe, _used(recipe, weights))

    def merge(
        self, block: Block, recipe: MergeRecipe, weights: Sequence[float], statistics: Any, *, name: str
    ) -> Tensor:
        """Merge a block."""
        used = _used(recipe, weights)
        if not used:
            return block.base
        picks = [self._selection.pick(place, block, recipe, statistics, name) for place in used]
        rescale = self._selection.rescale(recipe)
        if self._elect and len(used) > 1:
            shares = [abs(weights[place]) for place in used]
            factors = [weights[place] * rescale[place] for place in used]

            def kernel(tile: Tile) -> None:
                _elect(tile, [_take(tile, row, pick) for row, pick in enumerate(picks)], factors, shares)
                if recipe.scale != 1:
                    tile.out.mul_(recipe.scale)
                tile.out.add_(tile.base)

            return merge_by_tiles(block, used, kernel)
        # A lone expert always agrees with itself, whatever its weight.
        factors = [(1.0 if self._elect else weights[place]) * rescale[place] * recipe.scale for place in used]
        if len(used) == 1 and picks[0] is None and factors[0] == 1:
            return block.member(used[0])

        def plain_sum(tile: Tile) -> None:
            torch.mul(_take(tile, 0, picks[0]), factors[0], out=tile.out)
            for row in range(1, len(used)):
                tile.out.add_(_take(tile, row, picks[row]) * factors[row])
            tile.out.add_(tile.base)

        return merge_by_tiles(block, used, plain_sum)


def _used(recipe: MergeRecipe, weights: Sequence[float]) -> list[int]:
    return [place for place in canonical_order(recipe) if weights[place] != 0]


def _take(tile: Tile, row: int, pick: Any) -> Tensor:
    return tile.deltas[row] if pick is None else pick(tile.deltas[row], tile.start)


def _elect(tile: Tile, taken: Sequence[Tensor], factors: Sequence[float], shares: Sequence[float]) -> None:
    """Write the weighted mean of the numbers that agree with their sum's sign."""
    weighted = [numbers * factor for numbers, factor in zip(taken, factors, strict=True)]
    sign = weighted[0].clone()
    for numbers in weighted[1:]:
        sign.add_(numbers)
    sign.sign_()
    total, share = tile.out.zero_(), torch.zeros_like(tile.out)
    for numbers, weight in zip(weighted, shares, strict=True):
        agreeing = numbers.mul_(sign).clamp_(min=0)  # its magnitude where it agrees, 0 where not
        total.add_(agreeing)
        share.add_(agreeing.sign_().mul_(weight))
    # Where none agrees the sum is 0, whatever it is divided by.
    total.div_(share.clamp_(min=_NO_SHARE)).mul_(sign)
