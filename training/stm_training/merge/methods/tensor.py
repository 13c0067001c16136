"""Merge one parameter, block by block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from stm_training.merge.methods.arcs import NearerToBase
from stm_training.merge.methods.blocks import Blocks, WholeParameter
from stm_training.merge.methods.registry import METHODS
from stm_training.merge.recipe import MergeRecipe


def merge_parameter(
    name: str, blocks: Blocks, size: int, recipe: MergeRecipe, layers: int
) -> Iterator[Tensor]:
    """Merge one parameter in as many passes as the method needs.

    A parameter that comes in one block is read once, whatever the method; the block is then held until the
    merge is done.

    Args:
        name: The parameter's name: it says which layer it belongs to, and seeds DARE.
        blocks: Makes a pass over the parameter's blocks.
        size: Count of numbers in the whole parameter.
        recipe: The merge.
        layers: Count of the model's layers (``merge.curve.count_layers`` over all parameter names).

    Yields:
        The merged blocks in order, float32, each of its block's shape; the caller casts. A result may be one
        of the block's own tensors: do not write into it.
    """
    method = METHODS[recipe.method]
    weights = recipe.weights_for(name, layers)
    positions = list(recipe.positions().values())
    moves = any(position != 1 for position in positions)
    if method.needs_statistics or moves:
        blocks = _held_if_whole(blocks, size)
    if moves:
        blocks = _held_if_whole(NearerToBase(blocks, positions), size)
    statistics = method.statistics(blocks, size, recipe, weights)
    for block in blocks():
        yield method.merge(block, recipe, weights, statistics, name=name)


def _held_if_whole(blocks: Blocks, size: int) -> Blocks:
    """Keep a block that is the whole parameter, instead of making it again at every pass."""
    if isinstance(blocks, WholeParameter):
        return blocks
    for block in blocks():
        return WholeParameter(block) if block.base.numel() == size else blocks
    return blocks
