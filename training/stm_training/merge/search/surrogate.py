"""Predicts a merge's scores from the experts' own vectors; helps only while it was measured to be right.

To first order in the changes of weights, the vector of a merged model is the base's plus the weighted sum of
what each expert changes about it, scaled to unit length. Encoding is what a trial costs; this needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.objective import Objective
from stm_training.merge.search.records import SurrogateReport, Trial, TrialScores, recipe_key
from stm_training.merge.search.settings import SearchSection

Vectors = NDArray[np.float32]
Score = Callable[[Vectors, Vectors], Mapping[str, float]]
"""Query vectors (n, d) and document vectors (m, d) of a collection -> nDCG@10 by query id."""

_ADDING = frozenset({"task_arithmetic", "dare_linear", "breadcrumbs"})
_AVERAGING = frozenset({"ties", "dare_ties"})
_MEMBERS = frozenset({"linear", "slerp"})


@dataclass(frozen=True)
class MemberVectors:
    """Vectors of one collection by one model: queries (n, d), documents (m, d), unit length."""

    queries: Vectors
    documents: Vectors


@dataclass(frozen=True)
class SurrogateSet:
    """One collection as the base and every expert encode it.

    Attributes:
        name: The collection.
        guard: Whether it is a guard.
        score: Scores vectors on it.
        base: By the untouched base.
        experts: By each expert alone, at weight 1.
    """

    name: str
    guard: bool
    score: Score
    base: MemberVectors
    experts: Mapping[str, MemberVectors]


class Surrogate:
    """Predicts scores of merges.

    Args:
        sets: The development sets and the guards.
    """

    def __init__(self, sets: Sequence[SurrogateSet]) -> None:
        self._sets = tuple(sets)
        self._scores: dict[str, TrialScores] = {}

    def predict(self, recipe: MergeRecipe) -> TrialScores | None:
        """Predicted scores per query; None for a method that is no weighted sum of changes."""
        factors = factors_of(recipe)
        if factors is None:
            return None
        key = recipe_key(recipe)
        if key not in self._scores:
            dev = {one.name: _predict(one, factors) for one in self._sets if not one.guard}
            guards = {one.name: _predict(one, factors) for one in self._sets if one.guard}
            self._scores[key] = TrialScores(dev=dev, guards=guards)
        return self._scores[key]


def factors_of(recipe: MergeRecipe) -> dict[str, float] | None:
    """How much of each expert's change is in a merge; None where no such numbers exist.

    Trimming, the election of signs, depth and arcs are left out: TIES counts as the weighted mean times its
    scale, slerp as the chord.
    """
    positions = recipe.positions()
    weights = {name: float(weight) * positions[name] for name, weight in recipe.weights.items()}
    total = sum(recipe.weights.values())
    if recipe.method in _ADDING:
        return {name: recipe.scale * weight for name, weight in weights.items()}
    if recipe.method in _AVERAGING:
        return {name: recipe.scale * weight / total for name, weight in weights.items()}
    if recipe.method in _MEMBERS:
        return {name: weight / (recipe.base_weight + total) for name, weight in weights.items()}
    return None


def combine(base: Vectors, experts: Mapping[str, Vectors], factors: Mapping[str, float]) -> Vectors:
    """Unit vectors (n, d) of base + sum of factor x (expert - base), by row."""
    mixed = np.float32(1 - sum(factors.values())) * base
    for name, factor in factors.items():
        mixed = mixed + np.float32(factor) * experts[name]
    norms = np.linalg.norm(mixed, axis=1, keepdims=True)
    unit: Vectors = np.divide(mixed, norms, out=np.zeros_like(mixed), where=norms > 0)
    return unit


def _predict(one: SurrogateSet, factors: Mapping[str, float]) -> Mapping[str, float]:
    unknown = sorted(set(factors) - set(one.experts))
    if unknown:
        message = f"The surrogate has vectors of {sorted(one.experts)}, not of {unknown}. Encode them first."
        raise ConfigError(message)
    queries = combine(one.base.queries, {name: one.experts[name].queries for name in factors}, factors)
    documents = combine(one.base.documents, {name: one.experts[name].documents for name in factors}, factors)
    return one.score(queries, documents)


class SurrogateGuide:
    """Picks the next candidate by prediction, for methods whose predictions have been right so far.

    Args:
        surrogate: Predicts.
        objective: Turns scores into what is maximised.
        settings: Pool, threshold and how many exact trials it takes.
        trials: Gives the trials that are finished.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        objective: Objective,
        settings: SearchSection,
        trials: Callable[[], Sequence[Trial]],
    ) -> None:
        self._surrogate = surrogate
        self._objective = objective
        self._settings = settings
        self._trials = trials

    def predict(self, recipe: MergeRecipe) -> float | None:
        """The predicted objective (0-1)."""
        scores = self._surrogate.predict(recipe)
        return None if scores is None else self._objective(scores)

    def pick(self, candidates: Sequence[MergeRecipe]) -> tuple[int, bool]:
        """Index of the candidate to try next, and whether its prediction chose it.

        The first candidate says which method is next; if that method is trusted, the best predicted of its
        next few candidates is taken.
        """
        method = candidates[0].method
        if method not in self.report().trusted:
            return 0, False
        pool = [place for place, recipe in enumerate(candidates) if recipe.method == method]
        predicted = {
            place: value
            for place in pool[: self._settings.surrogate_pool]
            if (value := self.predict(candidates[place])) is not None
        }
        return max(predicted, key=lambda place: (predicted[place], -place)), True

    def report(self) -> SurrogateReport:
        """How well it has predicted so far."""
        settings = self._settings
        return report_on(self._trials(), settings.surrogate_correlation, settings.surrogate_trials)


def report_on(trials: Sequence[Trial], threshold: float, needed: int) -> SurrogateReport:
    """Compare the predicted with the exact objectives of all complete trials that have both."""
    pairs = [
        (trial.recipe.method, trial.predicted, trial.value)
        for trial in trials
        if trial.predicted is not None and trial.value is not None
    ]
    by_method: dict[str, tuple[int, float | None]] = {}
    for method in dict.fromkeys(method for method, _, _ in pairs):
        rows = [(predicted, exact) for name, predicted, exact in pairs if name == method]
        by_method[method] = (len(rows), spearman([row[0] for row in rows], [row[1] for row in rows]))
    errors = [abs(predicted - exact) for _, predicted, exact in pairs]
    return SurrogateReport(
        trials=len(pairs),
        spearman=spearman([row[1] for row in pairs], [row[2] for row in pairs]),
        by_method=by_method,
        threshold=threshold,
        needed=needed,
        used=sum(trial.chosen_by_surrogate for trial in trials),
        trusted=tuple(
            method
            for method, (count, rho) in by_method.items()
            if count >= needed and rho is not None and rho >= threshold
        ),
        mean_error=sum(errors) / len(errors) if errors else None,
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side does not vary."""
    if len(first) < 2:
        return None
    left, right = _ranks(first), _ranks(second)
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return None if scale == 0 else float((left * right).sum()) / scale


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means
