"""The final figures: systems on the test queries beside the base, and what they say about the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate import metrics
from stm_training.evaluate.bootstrap import DEFAULT, Method
from stm_training.evaluate.significance import paired_bootstrap

NDCG, RECALL = "ndcg@10", "recall@10"
CONTRADICTED = 3
"""Exit status of a command whose test figures contradict what was shipped."""


class SystemResult(BaseModel):
    """One system on one set of queries; all figures between 0 and 1, higher is better.

    Attributes:
        ndcg10: Mean nDCG@10 (``ndcg@10`` in JSON).
        recall10: Mean recall@10 (``recall@10`` in JSON).
        delta: ``ndcg10`` minus the reference's; None for the reference itself.
        ci95: Paired bootstrap interval of ``delta``; None for the reference itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    ndcg10: float = Field(alias=NDCG)
    recall10: float = Field(alias=RECALL)
    delta: float | None = None
    ci95: tuple[float, float] | None = None

    def figures(self) -> dict[str, Any]:
        """The row as it stands in every JSON file of ours."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems on the same queries.

    Attributes:
        base: Name of the system that differences are taken to.
        queries: How many queries were judged.
        systems: Name -> figures, in the order given.
    """

    base: str
    queries: int
    systems: dict[str, SystemResult]

    def figures(self) -> dict[str, dict[str, Any]]:
        """``{"systems": {name: {"ndcg@10", "recall@10", "delta", "ci95"}}}``."""
        return {"systems": {name: result.figures() for name, result in self.systems.items()}}


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The test queries say that what ships is worse than the base."""

    message: str
    exit_status: int = CONTRADICTED


def compare(
    scores: Mapping[str, metrics.QueryScores],
    base: str = "base",
    *,
    seed: int = 0,
    samples: int = 10_000,
    method: Method = DEFAULT,
) -> Comparison:
    """Mean figures of every system, and its difference to the base with a paired 95 % interval.

    Args:
        scores: System -> what :func:`stm_training.evaluate.metrics.score_run` gave at k = 10, for the same
            queries in any order.
        base: The system that differences are taken to.
        seed: Seeds the bootstrap; the same resamples serve every system.
        samples: Bootstrap samples.
        method: The interval; see :func:`stm_training.evaluate.bootstrap.interval`.

    Raises:
        ConfigError: If the base is not among the systems or a metric is missing.
        DataError: If the systems were not scored on the same queries, or on none.
    """
    if base not in scores:
        raise ConfigError(f"the reference {base!r} is not among the systems: {', '.join(scores) or 'none'}.")
    for name, per_metric in scores.items():
        missing = [metric for metric in (NDCG, RECALL) if metric not in per_metric]
        if missing:
            raise ConfigError(f"{name} has no {' and no '.join(missing)}; score every run at k = 10.")
    queries = list(scores[base][NDCG])
    systems: dict[str, SystemResult] = {}
    for name, per_metric in scores.items():
        _check_same_queries(name, per_metric, base, queries)
        # Summed in the base's order of queries, so that figures do not depend on a run's own.
        ndcg, recall = (
            metrics.mean({query: per_metric[metric][query] for query in queries}) for metric in (NDCG, RECALL)
        )
        result = SystemResult(ndcg10=ndcg, recall10=recall)
        if name != base:
            diffs = _in_order(per_metric[NDCG], queries) - _in_order(scores[base][NDCG], queries)
            gain = paired_bootstrap(diffs, seed=seed, samples=samples, method=method)
            result = result.model_copy(update={"delta": gain.mean, "ci95": (gain.lo, gain.hi)})
        systems[name] = result
    return Comparison(base, len(queries), systems)


def contradiction(results: Comparison, shipped: str) -> Contradiction | None:
    """Whether the shipped system's interval on the test queries lies wholly below the base.

    Args:
        results: The figures on the test queries.
        shipped: What the development queries chose.

    Returns:
        What to print and the exit status, or None where nothing contradicts.

    Raises:
        ConfigError: If the shipped system was not scored.
    """
    if shipped not in results.systems:
        raise ConfigError(f"{shipped!r} shipped but was not scored; scored: {', '.join(results.systems)}.")
    result = results.systems[shipped]
    if result.delta is None or result.ci95 is None or result.ci95[1] >= 0:
        return None
    lo, hi = result.ci95
    return Contradiction(
        f"The test queries contradict the choice: {shipped} is {100 * result.delta:+.2f} nDCG@10 points "
        f"against {results.base} on {results.queries} test queries (95 % interval {100 * lo:+.2f} to "
        f"{100 * hi:+.2f}, wholly below 0), though the development queries chose it. Do not deploy it. "
        f"Use {results.base}, or give more development queries that look like the test queries, or set "
        "ship_if: significant."
    )


def _in_order(values: Mapping[str, float], queries: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([values[query] for query in queries], dtype=np.float64)


def _check_same_queries(
    name: str, per_metric: metrics.QueryScores, base: str, queries: Sequence[str]
) -> None:
    for metric in (NDCG, RECALL):
        odd = set(queries).symmetric_difference(per_metric[metric])
        if odd:
            raise DataError(
                f"{name} and {base} were not scored on the same queries: {len(odd)} differ, for instance "
                f"{min(odd)!r}. Paired differences need one value per query from both; score them again."
            )
