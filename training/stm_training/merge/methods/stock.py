"""Model Stock: how far to go from the base to the experts' mean, from the angles between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from stm_training.merge.methods.blocks import Block, Blocks
from stm_training.merge.methods.products import inner_products
from stm_training.merge.methods.sums import add_up, canonical_order
from stm_training.merge.recipe import MergeRecipe


class ModelStock:
    """``t * mean + (1 - t) * base`` with ``t = N cos / (1 + (N - 1) cos)``, per parameter.

    Jang et al. 2024 (arXiv 2403.19522), section 4.2; ``cos`` is the mean cosine between the N experts'
    deltas. Where they have no direction in common (mean below 0, or no change at all) the base stays. The
    paper's mean has equal weights; an expert with weight 0 is none of the N.
    """

    needs_statistics = True

    def statistics(
        self, blocks: Blocks, size: int, recipe: MergeRecipe, weights: Sequence[float]
    ) -> list[float]:
        """Factor on each delta."""
        used = [place for place in canonical_order(recipe) if weights[place] > 0]
        gram = inner_products(blocks, used, with_base=False)
        cosines = []
        for left, right in itertools.combinations(range(len(used)), 2):
            lengths = math.sqrt(gram[left, left] * gram[right, right])
            cosines.append(float(gram[left, right]) / lengths if lengths > 0 else 0.0)
        cosine = min(1.0, max(0.0, math.fsum(cosines) / len(cosines)))
        ratio = len(used) * cosine / (1 + (len(used) - 1) * cosine)
        total = sum(weights[place] for place in used)
        return [ratio * max(0.0, weight) / total for weight in weights]

    def merge(
        self,
        block: Block,
        recipe: MergeRecipe,
        weights: Sequence[float],
        statistics: list[float],
        *,
        name: str,
    ) -> Tensor:
        """The sum with those factors."""
        return add_up(block, statistics, canonical_order(recipe))
