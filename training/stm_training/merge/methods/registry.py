"""The merge methods by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from stm_training.merge.methods.arcs import Slerp
from stm_training.merge.methods.blocks import Block, Blocks
from stm_training.merge.methods.selections import AtRandom, Between, Largest
from stm_training.merge.methods.stock import ModelStock
from stm_training.merge.methods.sums import Linear, TaskArithmetic
from stm_training.merge.methods.task_vectors import TaskVectors
from stm_training.merge.recipe import MergeRecipe


class Method(Protocol):
    """Statistics over a parameter's blocks, where a method needs them, and an element-wise kernel on a block.

    ``weights`` are those of this parameter, in the order of ``recipe.weights`` (``MergeRecipe.weights_for``).
    """

    @property
    def needs_statistics(self) -> bool:
        """Whether :meth:`statistics` makes passes over the blocks; without, one pass is all there is."""

    def statistics(self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]) -> Any:
        """Look at all blocks before the first is merged; ``size`` is the parameter's count of numbers."""

    def merge(
        self, block: Block, recipe: MergeRecipe, weights: Sequence[float], statistics: Any, *, name: str
    ) -> Tensor:
        """Merge one block: float32, of the block's shape; ``name`` is the parameter's (it seeds DARE).

        The result may be one of the block's own tensors: do not write into it.
        """


METHODS: Mapping[str, Method] = {
    "linear": Linear(),
    "slerp": Slerp(),
    "task_arithmetic": TaskArithmetic(),
    "ties": TaskVectors(Largest(), elect=True),
    "dare_linear": TaskVectors(AtRandom(), elect=False),
    "dare_ties": TaskVectors(AtRandom(), elect=True),
    "breadcrumbs": TaskVectors(Between(), elect=False),
    "model_stock": ModelStock(),
}
