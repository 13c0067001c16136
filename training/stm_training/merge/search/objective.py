"""What a search maximises: domain quality, minus what the guards lose beyond a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stm_retriever.errors import DataError
from stm_training.merge.search.records import QueryScores, TrialScores


@dataclass(frozen=True)
class Objective:
    """Mean nDCG@10 over development sets, minus a penalty for losses on guards.

    Attributes:
        base: Scores of the untouched base.
        penalty: Points taken off per point lost beyond the tolerance, summed over guards.
        tolerance: Loss on a guard that costs nothing, in points (0-100).
    """

    base: TrialScores
    penalty: float
    tolerance: float

    def __call__(self, scores: TrialScores) -> float:
        """The objective of complete scores, at most their domain mean."""
        return domain(scores) - self.penalty_of(scores)

    def penalty_of(self, scores: TrialScores) -> float:
        """What is taken off, 0 or more, on the scale of nDCG (0-1)."""
        losses = guard_losses(scores, self.base).values()
        return self.penalty * sum(max(0.0, loss - self.tolerance) for loss in losses) / 100


def domain(scores: TrialScores) -> float:
    """Mean over development sets of their means over queries: a small set counts as much as a large one."""
    return mean_of_means(scores.dev)


def general(scores: TrialScores) -> float | None:
    """The same over guards; None without guards."""
    return mean_of_means(scores.guards) if scores.guards else None


def mean_of_means(scores: QueryScores) -> float:
    """Mean over collections of their means over queries.

    Raises:
        DataError: If there is no collection, or one has no query.
    """
    if not scores:
        message = "There is no development set, so there is nothing to search by. Give development queries."
        raise DataError(message)
    return sum(_mean(name, queries) for name, queries in scores.items()) / len(scores)


def guard_losses(scores: TrialScores, base: TrialScores) -> dict[str, float]:
    """Points (0-100) that each guard loses against the base; negative where it gains."""
    return {
        name: 100 * (_mean(name, base.guards[name]) - _mean(name, queries))
        for name, queries in scores.guards.items()
    }


def _mean(name: str, queries: Mapping[str, float]) -> float:
    if not queries:
        message = f"{name} has no scored query, so it has no mean. Check its qrels, or leave it out."
        raise DataError(message)
    return math.fsum(queries.values()) / len(queries)
