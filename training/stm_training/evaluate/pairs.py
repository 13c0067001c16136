"""Systems against each other, query by query: differences, intervals, tests, wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.bootstrap import DEFAULT, Method
from stm_training.evaluate.metrics import QueryScores
from stm_training.evaluate.permutation import bootstrap_test, effect_size, holm, permutation_test
from stm_training.evaluate.significance import paired_bootstrap

_SAME = 1e-9
"""Scores closer than this are a tie: float summation, not quality."""


@dataclass(frozen=True, slots=True)
class PairComparison:
    """One system against another on one measure. Scores and differences lie between -1 and 1.

    Attributes:
        reference: What the difference is taken to.
        system: What is compared with it.
        measure: For instance ``ndcg@10``.
        queries: How many queries were judged.
        reference_mean: Mean of the reference.
        system_mean: Mean of the system.
        difference: ``system_mean`` minus ``reference_mean``.
        ci95: Paired bootstrap interval of ``difference``.
        p_permutation: Two-sided, by exchanging the systems per query.
        p_bootstrap: Two-sided, by resampling queries.
        p_holm: ``p_permutation`` corrected for all the comparisons made together (Holm 1979).
        effect_size: ``difference`` over the standard deviation of the differences; None where undefined.
        wins: Queries on which the system is better.
        losses: Queries on which it is worse.
        ties: Queries on which both are the same.
    """

    reference: str
    system: str
    measure: str
    queries: int
    reference_mean: float
    system_mean: float
    difference: float
    ci95: tuple[float, float]
    p_permutation: float
    p_bootstrap: float
    p_holm: float
    effect_size: float | None
    wins: int
    losses: int
    ties: int

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_pairs(
    scores: Mapping[str, QueryScores],
    measures: Sequence[str],
    *,
    reference: str | None = None,
    all_pairs: bool = False,
    seed: int = 0,
    samples: int = 10_000,
    method: Method = DEFAULT,
) -> list[PairComparison]:
    """Compare systems that were scored on the same queries.

    Args:
        scores: System -> measure -> query id -> score.
        measures: What to compare on; all comparisons on all of these are one family for Holm's correction.
        reference: What every other system is compared with; None: the first.
        all_pairs: Compare every system with every later one instead.
        seed: Seeds bootstrap and permutations.
        samples: Bootstrap samples, and random permutations.
        method: The interval; see :func:`stm_training.evaluate.bootstrap.interval`.

    Returns:
        By measure, then in the order of the systems; empty if there is only one.

    Raises:
        ConfigError: If the reference or a measure is missing.
        DataError: If two systems were not scored on the same queries.
    """
    names = list(scores)
    reference = next(iter(names), "") if reference is None else reference
    if reference not in scores:
        raise ConfigError(
            f"the reference {reference!r} is not among the systems: {', '.join(names) or 'none'}."
        )
    pairs = (
        list(combinations(names, 2))
        if all_pairs
        else [(reference, name) for name in names if name != reference]
    )
    return compare_these(scores, pairs, measures, seed=seed, samples=samples, method=method)


def compare_these(
    scores: Mapping[str, QueryScores],
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[str],
    *,
    seed: int = 0,
    samples: int = 10_000,
    method: Method = DEFAULT,
) -> list[PairComparison]:
    """Compare the pairs that are named, which are one family for Holm's correction.

    Args:
        scores: System -> measure -> query id -> score.
        pairs: (reference, system), each among ``scores``.
        measures: What to compare on.
        seed: Seeds bootstrap and permutations.
        samples: Bootstrap samples, and random permutations.
        method: The interval; see :func:`stm_training.evaluate.bootstrap.interval`.

    Returns:
        By measure, then in the order of the pairs.

    Raises:
        ConfigError: If a system or a measure is missing.
        DataError: If two systems were not scored on the same queries.
    """
    missing = sorted({name for pair in pairs for name in pair} - set(scores))
    if missing:
        raise ConfigError(
            f"{', '.join(map(repr, missing))} cannot be compared: the scored systems are "
            f"{', '.join(scores) or 'none'}. Name pairs of these."
        )
    found = [
        _compare(scores, before, after, measure, seed=seed, samples=samples, method=method)
        for measure in measures
        for before, after in pairs
    ]
    corrected = holm([one.p_permutation for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


def differences(
    scores: Mapping[str, QueryScores], reference: str, system: str, measure: str
) -> dict[str, float]:
    """Query id -> score of the system minus that of the reference; 0 where they are a rounding error apart.

    Raises:
        ConfigError: If one has no such measure.
        DataError: If they were not scored on the same queries, or on none.
    """
    for name in (reference, system):
        if measure not in scores[name]:
            raise ConfigError(f"{name} has no {measure}; it has {', '.join(scores[name]) or 'no measure'}.")
    before, after = scores[reference][measure], scores[system][measure]
    odd = set(before).symmetric_difference(after)
    if odd or not before:
        raise DataError(
            f"{system} and {reference} were not scored on the same queries: {len(odd)} differ"
            f"{f', for instance {min(odd)!r}' if odd else ', and there are none'}. "
            "Score both on one collection."
        )
    found = {query: after[query] - value for query, value in before.items()}
    return {query: 0.0 if abs(diff) <= _SAME else diff for query, diff in found.items()}


def _compare(
    scores: Mapping[str, QueryScores],
    reference: str,
    system: str,
    measure: str,
    *,
    seed: int,
    samples: int,
    method: Method,
) -> PairComparison:
    found = differences(scores, reference, system, measure)
    diffs: NDArray[np.float64] = np.array(list(found.values()), dtype=np.float64)
    gain = paired_bootstrap(diffs, seed=seed, samples=samples, method=method)
    p = permutation_test(diffs, samples=samples, seed=seed)
    before = float(np.mean([scores[reference][measure][query] for query in found]))
    return PairComparison(
        reference=reference,
        system=system,
        measure=measure,
        queries=len(diffs),
        reference_mean=before,
        system_mean=float(np.mean([scores[system][measure][query] for query in found])),
        difference=gain.mean,
        ci95=(gain.lo, gain.hi),
        p_permutation=p,
        p_bootstrap=bootstrap_test(diffs, samples=samples, seed=seed),
        p_holm=p,
        effect_size=effect_size(diffs),
        wins=int((diffs > 0).sum()),
        losses=int((diffs < 0).sum()),
        ties=int((diffs == 0).sum()),
    )
