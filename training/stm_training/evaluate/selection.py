"""What ships: chosen on development queries against the untouched base, with guards.

Test scores have no way in here. They are computed once, afterwards, and may only contradict
(:mod:`stm_training.evaluate.compare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.significance import Interval, paired_bootstrap

ShipIf: TypeAlias = Literal["mean", "significant"]

_SAME = 1e-9  # means closer than this are a tie: float summation, not quality
_FEW_QUERIES = 30  # below this many a percentile interval is known to be too narrow


@dataclass(frozen=True, slots=True)
class Gate:
    """What a candidate must pass.

    Attributes:
        ship_if: ``mean``: a higher development mean than the base's; ``significant``: besides, the lower end
            of the paired interval above 0.
        max_guard_loss: Largest loss against the base on any guard set, in points (0-100).
    """

    ship_if: ShipIf = "mean"
    max_guard_loss: float = 0.5


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """One candidate at the gate. Scores are between 0 and 1, guard deltas in points (0-100).

    Attributes:
        name: The candidate.
        members: How many experts are in it; 0 for the base.
        dev_mean: Mean over the development queries.
        delta: ``dev_mean`` minus the base's; None for the base.
        ci95: Paired bootstrap interval of ``delta``; None for the base.
        guard_deltas: Guard set -> mean minus the base's, in points.
        passed: Whether it may ship.
        why_not: Why it may not, in plain words; empty if it may.
    """

    name: str
    members: int
    dev_mean: float
    delta: float | None
    ci95: tuple[float, float] | None
    guard_deltas: dict[str, float]
    passed: bool
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What ships and why.

    Attributes:
        shipped: Name of the chosen candidate; the base's where nothing passes.
        reason: Why, in plain words, with the figures.
        ship_if: The rule that was asked for.
        max_guard_loss: In points (0-100).
        dev_queries: How many development queries decided.
        metric: What the scores measure.
        table: One row per candidate, the base first, then by development mean.
    """

    shipped: str
    reason: str
    ship_if: ShipIf
    max_guard_loss: float
    dev_queries: int
    metric: str
    table: tuple[SelectionRow, ...]


def choose(
    candidates: Mapping[str, ArrayLike],
    *,
    base: str = "base",
    ship_if: ShipIf = "mean",
    guards: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    max_guard_loss: float = 0.5,
    members: Mapping[str, int] | None = None,
    seed: int = 0,
    samples: int = 10_000,
    metric: str = "nDCG@10",
) -> Decision:
    """Choose what ships from scores on development queries alone.

    Of the candidates that pass, the one with the highest development mean ships. Ties go to the plainer:
    the base first, then fewer members, then the order given. The intervals are each candidate's own: they
    are not widened for the number of candidates, which is why the shipped one is scored again on test
    queries that had no part in this.

    Args:
        candidates: Name -> (n,) score per development query, between 0 and 1, every candidate in the same
            order of queries; the base among them.
        base: Name of the untouched base.
        ship_if: See :class:`Gate`.
        guards: Guard set -> name -> (m,) score per guard query; each set holds every candidate.
        max_guard_loss: See :class:`Gate`; in points (0-100).
        members: Name -> how many experts are in it; those not named count as 1, the base as 0.
        seed: Seeds the bootstrap.
        samples: Bootstrap samples.
        metric: What the scores measure, for the wording.

    Returns:
        The decision with a row per candidate.

    Raises:
        ConfigError: If the base or a guard score is missing, or a setting cannot be used.
        DataError: If scores are empty, not finite, or not of one length.
    """
    gate = Gate(ship_if, max_guard_loss)
    _check_gate(gate)
    dev = _as_arrays(candidates, base, list(candidates), "the development queries")
    guard_scores = {
        name: _as_arrays(scores, base, list(dev), f"guard {name!r}")
        for name, scores in (guards or {}).items()
    }
    counts = {name: (members or {}).get(name, 0 if name == base else 1) for name in dev}
    rows = []
    for name, scores in dev.items():
        losses = {guard: _points(per[name].mean() - per[base].mean()) for guard, per in guard_scores.items()}
        if name == base:
            rows.append(SelectionRow(name, 0, float(scores.mean()), None, None, losses, passed=True))
            continue
        gain = paired_bootstrap(scores - dev[base], seed=seed, samples=samples)
        why_not = _why_not(gain, losses, gate)
        rows.append(
            SelectionRow(
                name,
                counts[name],
                float(scores.mean()),
                gain.mean,
                (gain.lo, gain.hi),
                losses,
                passed=not why_not,
                why_not=why_not,
            )
        )
    ordered = sorted(rows, key=lambda row: (row.name != base, -row.dev_mean))
    shipped = _best([row for row in rows if row.passed])
    reason = _reason(shipped, ordered, gate, len(dev[base]), metric)
    return Decision(shipped.name, reason, ship_if, max_guard_loss, len(dev[base]), metric, tuple(ordered))


def _check_gate(gate: Gate) -> None:
    if gate.ship_if not in ("mean", "significant"):
        raise ConfigError(f"ship_if is {gate.ship_if!r}; it must be 'mean' or 'significant'.")
    if not gate.max_guard_loss >= 0:
        raise ConfigError(
            f"max_guard_loss is {gate.max_guard_loss}; it is the largest loss allowed, in points (0-100), "
            "so it cannot be below 0."
        )


def _as_arrays(
    scores: Mapping[str, ArrayLike], base: str, names: Sequence[str], where: str
) -> dict[str, NDArray[np.float64]]:
    missing = [name for name in dict.fromkeys([base, *names]) if name not in scores]
    if missing:
        raise ConfigError(
            f"{where}: no scores of {', '.join(missing)}; found {', '.join(scores) or 'none'}. "
            "Every candidate, and the base, is scored on the same queries."
        )
    arrays = {name: np.asarray(scores[name], dtype=np.float64) for name in names}
    expected = arrays[base].shape
    for name, values in arrays.items():
        if values.ndim != 1 or len(values) == 0 or values.shape != expected:
            raise DataError(
                f"{where}: {name} has scores of shape {values.shape}, {base} of shape {expected}; "
                "one score per query is needed, of the same queries in the same order."
            )
        if not np.isfinite(values).all():
            raise DataError(f"{where}: {name} has scores that are not finite. Look for NaN in its vectors.")
    return arrays


def _points(difference: float) -> float:
    return float(difference) * 100.0


def _why_not(gain: Interval, losses: Mapping[str, float], gate: Gate) -> str:
    reasons = []
    if gain.mean <= _SAME:
        word = "the same as" if gain.mean >= -_SAME else "worse than"
        reasons.append(f"{word} the base on the development queries")
    elif gate.ship_if == "significant" and gain.lo <= 0:
        reasons.append(f"its gain is not significant (95 % interval {_interval(gain.lo, gain.hi)} points)")
    for guard, delta in losses.items():
        if -delta > gate.max_guard_loss + 100 * _SAME:
            reasons.append(f"lost {-delta:.2f} points on guard {guard} (allowed: {gate.max_guard_loss:g})")
    return "; ".join(reasons)


def _best(passed: Sequence[SelectionRow]) -> SelectionRow:
    top = max(row.dev_mean for row in passed)
    tied = [row for row in passed if top - row.dev_mean <= _SAME]
    return min(tied, key=lambda row: row.members)


def _reason(
    shipped: SelectionRow, ordered: Sequence[SelectionRow], gate: Gate, queries: int, metric: str
) -> str:
    base = ordered[0]
    few = (
        f" With only {queries} development queries the interval is narrower than it should be."
        if queries < _FEW_QUERIES
        else ""
    )
    if shipped.delta is not None and shipped.ci95 is not None:
        text = (
            f"{shipped.name} ships: {metric} {shipped.dev_mean:.4f} on {queries} development queries against "
            f"{base.dev_mean:.4f} of {base.name}, {_points(shipped.delta):+.2f} points "
            f"(95 % interval {_interval(*shipped.ci95)})"
        )
        if shipped.guard_deltas:
            text += f", and no guard lost more than {gate.max_guard_loss:g} points"
        return f"{text}.{few}"
    if len(ordered) == 1:
        return f"{base.name} ships: there was no other candidate."
    best = ordered[1]
    return (
        f"{base.name} ships: none of the {len(ordered) - 1} candidates passed on {queries} development "
        f"queries (ship_if: {gate.ship_if}). The best of them, {best.name}, had {metric} {best.dev_mean:.4f} "
        f"against {base.dev_mean:.4f}: {best.why_not}.{few}"
    )


def _interval(lo: float, hi: float) -> str:
    return f"{_points(lo):+.2f} to {_points(hi):+.2f}"
