"""Merges that are one sum of the base and the deltas: linear, task arithmetic, and what SLERP comes to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks, Tile, merge_by_tiles
from stm_training.merge.recipe import MergeRecipe


def canonical_order(recipe: MergeRecipe) -> list[int]:
    """Places of the experts sorted by name: sums in this order do not depend on how a recipe lists them."""
    names = list(recipe.weights)
    return sorted(range(len(names)), key=names.__getitem__)


def add_up(block: Block, factors: Sequence[float], order: Sequence[int], *, own: float = 0.0) -> Tensor:
    """``base + (own * base + sum of factor * delta)``.

    Args:
        block: The block.
        factors: One per member.
        order: The order in which the members are added.
        own: Share of the base that is added to it.

    Returns:
        Float32; the member itself where its factor is 1 and all others 0. May be the block's own tensor.
    """
    used = [place for place in order if factors[place] != 0]
    if own == 0 and not used:
        return block.base
    if own == 0 and len(used) == 1 and factors[used[0]] == 1:
        return block.member(used[0])

    def kernel(tile: Tile) -> None:
        # The changes are summed first: they are small beside the base, and would lose bits one by one.
        # Products and sums are separate on purpose: fused ones round otherwise at the ends of a tensor.
        change: Tensor | None = torch.mul(tile.base, own, out=tile.out) if own else None
        for place, delta in zip(used, tile.deltas, strict=True):
            if change is None:
                change = torch.mul(delta, factors[place], out=tile.out)
            else:
                change.add_(delta * factors[place])
        tile.out.add_(tile.base)

    return merge_by_tiles(block, used, kernel)


class Linear:
    """Weighted mean of the experts and, with ``base_weight``, the base.

    Model soups, Wortsman et al. 2022 (arXiv 2203.05482), section 2.
    """

    needs_statistics = False

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]) -> None:
        """None needed."""

    def merge(
        self, block: Block, recipe: MergeRecipe, weights: Sequence[float], statistics: None, *, name: str
    ) -> Tensor:
        """The members' mean is the base plus the mean of deltas, in which the base's own delta is zero."""
        order = canonical_order(recipe)
        total = recipe.base_weight + sum(weights[place] for place in order)
        return add_up(block, [weight / total for weight in weights], order)


class TaskArithmetic:
    """Base plus the weighted sum of deltas; weights need not add up to 1.

    Ilharco et al. 2023 (arXiv 2212.04089), section 2.
    """

    needs_statistics = False

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]) -> None:
        """None needed."""

    def merge(
        self, block: Block, recipe: MergeRecipe, weights: Sequence[float], statistics: None, *, name: str
    ) -> Tensor:
        """The sum."""
        return add_up(block, weights, canonical_order(recipe))
