"""Ends a trial early when it is surely worse than the best one so far, by paired differences.

What a trial costs is encoding documents, so what saves is not encoding them. A trial is judged first on a
seeded part of the queries against a part of the documents (the judged ones and a sample); then on all
development queries; the guards' corpora are encoded last, for those that are still in the running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

from stm_training.merge.search.objective import Objective
from stm_training.merge.search.records import QueryScores, TrialScores

# With fewer paired queries a bound from their spread means little.
FEWEST_QUERIES = 16


class Pruner:
    """Compares a trial with the best complete one, query by query.

    The objective is at most the domain mean. So a trial is hopeless once its domain mean, at the upper end
    of the paired difference, stays below the best objective: whatever the guards say, it cannot win. It could
    still have been on the Pareto set by its guards alone; a search for that set turns pruning off.

    Args:
        incumbent: Gives the scores with the highest objective so far (the base's at first).
        objective: The objective.
        confidence: One-sided confidence of the bound, above 0.5.
    """

    def __init__(self, incumbent: Callable[[], TrialScores], objective: Objective, confidence: float) -> None:
        self._incumbent = incumbent
        self._objective = objective
        self._z = NormalDist().inv_cdf(confidence)

    def __call__(self, scores: TrialScores) -> str:
        """Why the trial is hopeless; empty while it is not."""
        best = self._incumbent()
        ours, theirs = (scores.part, best.part) if scores.stage == "part" else (scores.dev, best.dev)
        bound = upper_bound(ours, theirs, self._z)
        if bound is None or bound + self._objective.penalty_of(best) >= 0:
            return ""
        queries = sum(map(len, ours.values()))
        return (
            f"ended after {queries} queries ({scores.stage}): at best {100 * bound:+.2f} points of nDCG@10 "
            f"against the best so far"
        )


def upper_bound(ours: QueryScores, theirs: QueryScores, z: float) -> float | None:
    """Upper confidence bound of the difference of two systems' means over collections.

    Stratified: the mean of the collections' mean differences, its variance the sum of theirs (normal
    approximation of the paired difference).

    Args:
        ours: Scores by collection and query.
        theirs: The reference's; queries that only one of them has are left out.
        z: Normal quantile of the confidence.

    Returns:
        The bound on the scale of nDCG (0-1); None with too few common queries in a collection to tell.
    """
    means, variances = [], []
    for name, scores in ours.items():
        differences = _differences(scores, theirs.get(name, {}))
        n = len(differences)
        if n < FEWEST_QUERIES:
            return None
        mean = sum(differences) / n
        means.append(mean)
        variances.append(sum((value - mean) ** 2 for value in differences) / (n - 1) / n)
    if not means:
        return None
    return (sum(means) + z * math.sqrt(sum(variances))) / len(means)


def _differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    return [value - theirs[query] for query, value in ours.items() if query in theirs]
