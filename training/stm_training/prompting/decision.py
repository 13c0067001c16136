"""Which prompt is taken: the plain one, unless another is better on queries that did not choose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_training.evaluate.significance import Interval, paired_bootstrap
from stm_training.prompting.lint import Finding
from stm_training.prompting.settings import PromptSearchSection

PLAIN = "plain"
_ROUNDING = 1e-9  # below it, two means differ by summation alone


@dataclass(frozen=True)
class Candidate:
    """A prompt with its scores, and what the linter says.

    Attributes:
        prompt: The text before a query, verbatim.
        origin: ``plain``, ``list``, ``random`` or ``gepa``.
        findings: Why it was refused; a refused prompt is not scored (the plain one always is).
        dev: Mean nDCG@10 over all development queries.
        search: The same over the half that ranks the candidates.
        decide: The same over the half that the test is made on.
        interval: Difference to the plain prompt on that half, with its interval.
        finalist: Whether it was among those tested.
    """

    prompt: str
    origin: str
    findings: tuple[Finding, ...] = ()
    dev: float | None = None
    search: float | None = None
    decide: float | None = None
    interval: Interval | None = None
    finalist: bool = False


@dataclass(frozen=True)
class PromptDecision:
    """The choice, and all that it rests on.

    Attributes:
        prompt: The query prompt to use.
        plain: The model's own.
        reason: Why, with the figures.
        candidates: The plain prompt first, then all others in the order tried.
        queries: Development queries in each part (``search``, ``decide``).
        level: Coverage of each interval, shared among the finalists (Bonferroni).
        notes: What a reader of the figures should know.
        gepa: GEPA's own figures, where it ran.
    """

    prompt: str
    plain: str
    reason: str
    candidates: tuple[Candidate, ...]
    queries: dict[str, int]
    level: float | None = None
    notes: tuple[str, ...] = ()
    gepa: dict[str, Any] | None = None

    @property
    def changed(self) -> bool:
        """Whether another prompt than the model's own was chosen."""
        return self.prompt != self.plain

    def figures(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "prompt": self.prompt,
            "plain": self.plain,
            "changed": self.changed,
            "reason": self.reason,
            "queries": self.queries,
            "level": self.level,
            "notes": list(self.notes),
            "gepa": self.gepa,
            "candidates": [
                {
                    "prompt": one.prompt,
                    "origin": one.origin,
                    "dev_ndcg@10": one.dev,
                    "search_ndcg@10": one.search,
                    "decide_ndcg@10": one.decide,
                    "difference": None if one.interval is None else one.interval.mean,
                    "interval": None if one.interval is None else [one.interval.lo, one.interval.hi],
                    "finalist": one.finalist,
                    "chosen": one.prompt == self.prompt,
                    "lint": [asdict(finding) for finding in one.findings],
                }
                for one in self.candidates
            ],
        }


@dataclass(frozen=True)
class Scored:
    """A prompt's nDCG@10 per query, (n,) on each part of the development queries."""

    prompt: str
    origin: str
    search: NDArray[np.float64]
    decide: NDArray[np.float64]


def decide(
    scored: Sequence[Scored], settings: PromptSearchSection, *, seed: int
) -> tuple[str, str, list[Candidate], float]:
    """Choose among scored prompts.

    The candidates that beat the plain prompt on the search half, at most ``finalists`` of them, are compared
    with it on the other half. One whose interval lies above 0 may be taken; of several the best, unless a
    shorter one is not told apart from it.

    Args:
        scored: The plain prompt first.
        settings: Number of finalists, level and samples.
        seed: Seeds the bootstrap.

    Returns:
        The prompt, the reason, all candidates with their figures, and the level of each interval.
    """
    plain, *others = scored
    better = [one for one in others if one.search.mean() > plain.search.mean() + _ROUNDING]
    finalists = sorted(better, key=lambda one: (-one.search.mean(), *_plainness(one)))[: settings.finalists]
    level = 1 - (1 - settings.level) / max(1, len(finalists))

    def difference(one: Scored, other: Scored) -> Interval:
        diffs = one.decide - other.decide
        return paired_bootstrap(diffs, samples=settings.bootstrap_samples, seed=seed, level=level)

    intervals = {one.prompt: difference(one, plain) for one in others}
    table = [
        Candidate(
            one.prompt,
            one.origin,
            dev=float(np.concatenate([one.search, one.decide]).mean()),
            search=float(one.search.mean()),
            decide=float(one.decide.mean()),
            interval=intervals.get(one.prompt),
            finalist=any(one is other for other in finalists),
        )
        for one in scored
    ]
    sure = [one for one in finalists if intervals[one.prompt].lo > 0]
    if not sure:
        return plain.prompt, _why_plain(others, finalists, intervals, level), table, level
    best = min(sure, key=lambda one: (-one.decide.mean(), *_plainness(one)))
    equal = [one for one in sure if one is best or difference(best, one).lo <= 0]
    chosen = min(equal, key=_plainness)
    reason = f"it beats the plain prompt on {len(plain.decide)} other queries: " + _points(
        intervals[chosen.prompt], level
    )
    if chosen is not best:
        reason += f"; a longer prompt ({best.decide.mean():.4f}) is not told apart from it"
    return chosen.prompt, reason, table, level


def _plainness(one: Scored) -> tuple[int, str]:
    return len(one.prompt), one.prompt


def _why_plain(
    others: Sequence[Scored], finalists: Sequence[Scored], intervals: dict[str, Interval], level: float
) -> str:
    if not others:
        return "no other prompt could be tried"
    if not finalists:
        return f"none of {len(others)} other prompts scores higher on the queries that rank them"
    nearest = max(finalists, key=lambda one: intervals[one.prompt].lo)
    return (
        f"no other prompt is surely better: of {len(finalists)} tested on queries of their own, the nearest "
        f"brings {_points(intervals[nearest.prompt], level)}"
    )


def _points(interval: Interval, level: float) -> str:
    return (
        f"{100 * interval.mean:+.2f} points of nDCG@10, {100 * level:.1f} % interval "
        f"{100 * interval.lo:+.2f} to {100 * interval.hi:+.2f}"
    )
