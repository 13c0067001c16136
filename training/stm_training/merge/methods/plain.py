"""The methods as functions of plain tensors that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stm_training.merge.methods.blocks import Block, WholeParameter
from stm_training.merge.methods.tensor import merge_parameter
from stm_training.merge.recipe import MergeRecipe


def merge_block(block: Block, recipe: MergeRecipe, *, name: str = "weight", layers: int = 1) -> Tensor:
    """Merge a parameter that is one block.

    Args:
        block: The whole parameter.
        recipe: The merge.
        name: The parameter's name; see ``merge_parameter``.
        layers: Count of the model's layers.

    Returns:
        The merged parameter, float32; may be one of the block's own tensors.
    """
    (merged,) = merge_parameter(name, WholeParameter(block), block.base.numel(), recipe, layers)
    return merged


def linear(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], *, base_weight: float = 0.0
) -> Tensor:
    """Weighted mean of the experts' weights and, with ``base_weight``, the base's.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert; together with ``base_weight`` they add up to more than 0.
        base_weight: Weight of the untouched base as a member.
    """
    recipe = MergeRecipe(method="linear", weights=_named(weights), base_weight=base_weight)
    return merge_block(_block(base, deltas), recipe)


def task_arithmetic(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Base plus the weighted sum of deltas.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert; they need not add up to 1.
    """
    return merge_block(_block(base, deltas), MergeRecipe(method="task_arithmetic", weights=_named(weights)))


def ties(
    base: Tensor,
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
) -> Tensor:
    """Trim small changes, elect a sign per number, and average the weighted changes that agree with it.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert.
        densities: Share of each expert's numbers that is kept, the largest ones, in (0, 1].
        scale: Factor on the merged change (lambda in the paper): weights are relative, this is not.
    """
    recipe = MergeRecipe(method="ties", weights=_named(weights), density=_named(densities), scale=scale)
    return merge_block(_block(base, deltas), recipe)


def slerp(first: Tensor, second: Tensor, position: float) -> Tensor:
    """Go from one weight to another along the arc between their directions.

    Args:
        first: A weight, any shape and floating type.
        second: Another, of that shape.
        position: From 0, which gives ``first``, to 1, which gives ``second``.
    """
    start, end = first.float(), second.float()
    block = Block(start, [end - start], members=[end])
    recipe = MergeRecipe(method="slerp", weights={"second": position}, base_weight=1 - position)
    return merge_block(block, recipe)


def _named(values: Sequence[float]) -> dict[str, float]:
    """Names that sort as the values are listed."""
    return {f"{place:04}": value for place, value in enumerate(values)}


def _block(base: Tensor, deltas: Sequence[Tensor]) -> Block:
    return Block(base.float(), [delta.to(base.device).float() for delta in deltas])
