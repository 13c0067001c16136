"""The merges that a recipe's search tries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stm_training.merge.recipe import MergeRecipe
from stm_training.recipe import MergeSection


def describe(merge: MergeRecipe) -> str:
    """For tables: ``ties(questions=0.5, statements=0.7; density 0.5)``."""
    members = ", ".join(
        f"{name.removeprefix('expert:')}={weight:g}" for name, weight in merge.weights.items()
    )
    density = (
        f"; density {merge.density:g}" if merge.method == "ties" and isinstance(merge.density, float) else ""
    )
    return f"{merge.method}({members}{density})"


def merge_candidates(section: MergeSection, experts: Sequence[str], *, seed: int) -> list[MergeRecipe]:
    """The grid of the recipe, or a seeded sample of it where it is larger than ``trials``.

    The base is a member of each: what the experts' weights leave is its share, so a single expert at half
    weight is a merge too. Equal weights come first, since they are what one would do without a search; they
    take at most half of the trials.

    Args:
        section: The recipe's ``merge``.
        experts: Names of the experts.
        seed: Seeds the sample.

    Returns:
        At most ``section.trials`` merges; an expert with weight 0 is left out of its merge.
    """
    grid = {
        describe(merge): merge
        for values in itertools.product(section.weights, repeat=len(experts))
        if any(values)
        for merge in _with_methods(section, dict(zip(experts, values, strict=True)))
    }
    equal = [merge for merge in grid.values() if _is_equal(merge, len(experts))]
    others = [merge for merge in grid.values() if not _is_equal(merge, len(experts))]
    rng = np.random.default_rng(seed)
    first = [equal[place] for place in rng.permutation(len(equal))]
    rest = [others[place] for place in rng.permutation(len(others))]
    half = max(1, section.trials // 2) if rest else section.trials
    chosen = first[:half] + rest
    return (chosen + first[half:])[: section.trials]


def _is_equal(merge: MergeRecipe, experts: int) -> bool:
    return len(merge.weights) == experts and len(set(merge.weights.values())) == 1


def _with_methods(section: MergeSection, weights: dict[str, float]) -> list[MergeRecipe]:
    used = {name: weight for name, weight in weights.items() if weight}
    merges = []
    for method in section.methods:
        if method == "ties":
            # TIES weights are relative, so the largest one scales the merged change.
            merges += [
                MergeRecipe(method=method, weights=used, density=density, scale=max(used.values()))
                for density in section.densities
            ]
        elif method == "linear":  # as the papers mean it: weights that add up to 1
            total = sum(used.values())
            scaled = {name: round(weight / total, 4) for name, weight in used.items()}
            merges.append(MergeRecipe(method=method, weights=scaled))
        else:
            merges.append(MergeRecipe(method=method, weights=used))
    return merges
