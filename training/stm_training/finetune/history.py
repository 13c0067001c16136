"""What a training run has measured so far: development scores, the best of them, and curves.

The records are those of transformers' ``log_history``, which every checkpoint carries: a decision that is
read from them is the same after a kill and a resume. No torch here: reports and commands read histories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.whole_files import write_whole_text

DEV = "dev_ndcg@10"
_SAME = 1e-9  # closer than this is a tie: float summation, not quality


@dataclass(frozen=True)
class DevScore:
    """A model's score while it is being trained.

    Attributes:
        dev: nDCG@10 between 0 and 1, mean over the development queries.
        guards: Guard set -> mean nDCG@10 between 0 and 1.
        queries: nDCG@10 by development query, where it is known; paired intervals need it.
    """

    dev: float
    guards: Mapping[str, float] = field(default_factory=dict)
    queries: Mapping[str, float] = field(default_factory=dict)

    def record(self, step: int) -> dict[str, Any]:
        """The entry of the log history."""
        entry: dict[str, Any] = {"step": step, DEV: self.dev, "guards": dict(self.guards)}
        return entry | ({"queries": dict(self.queries)} if self.queries else {})


@dataclass(frozen=True)
class Evaluation:
    """A development score and when it was taken; step 0 is the model before training."""

    step: int
    score: DevScore


@dataclass(frozen=True)
class Standing:
    """Where a run stands after its evaluations.

    Attributes:
        best: The evaluation whose weights are kept; ``None`` before the first.
        waited: Evaluations since then.
        refused: Steps that were better on the development queries and lost too much on a guard.
    """

    best: Evaluation | None
    waited: int
    refused: tuple[int, ...]

    def exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` evaluations passed without a better one."""
        return patience is not None and self.best is not None and self.waited >= patience


@dataclass(frozen=True)
class Curves:
    """A run's figures by step.

    Attributes:
        steps: Optimiser steps, counted from 1.
        losses: The loss of each.
        learning_rates: Of each; NaN where it was not recorded.
        tokens_per_second: Of each; NaN where it was not recorded.
        dev: (step, nDCG@10) of each evaluation, between 0 and 1.
        guards: Guard set -> (step, nDCG@10) of each evaluation.
        best_step: The evaluation whose weights were kept; ``None`` where there was none.
    """

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    learning_rates: tuple[float, ...] = ()
    tokens_per_second: tuple[float, ...] = ()
    dev: tuple[tuple[int, float], ...] = ()
    guards: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    best_step: int | None = None


def evaluations(history: Iterable[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations among the records of a log history, in the order of their steps."""
    found = {
        int(entry["step"]): DevScore(entry[DEV], entry.get("guards", {}), entry.get("queries", {}))
        for entry in history
        if DEV in entry
    }
    return [Evaluation(step, found[step]) for step in sorted(found)]


def standing(evaluated: Sequence[Evaluation], max_guard_loss: float | None) -> Standing:
    """Choose the best evaluation and count those since.

    The best has the highest development mean among those that lost at most ``max_guard_loss`` points on
    every guard against the first evaluation, which takes part itself: where training only harms, the model
    before training is the best. A tie goes to the earlier one.

    Args:
        evaluated: In the order of their steps; the first is the reference.
        max_guard_loss: In nDCG@10 points (0-100); ``None``: guards are recorded and refuse nothing.
    """
    best: Evaluation | None = None
    waited = 0
    refused: list[int] = []
    for one in evaluated:
        waited += 1
        if best is not None and one.score.dev <= best.score.dev + _SAME:
            continue
        if worst_guard_loss(evaluated[0].score, one.score) > _limit(max_guard_loss):
            refused.append(one.step)
            continue
        best, waited = one, 0
    return Standing(best, waited, tuple(refused))


def worst_guard_loss(start: DevScore, now: DevScore) -> float:
    """The largest loss on a guard against the start, in points (0-100); negative where all gained."""
    return max((100 * (start.guards[name] - now.guards[name]) for name in start.guards), default=0.0)


def curves(history: Iterable[Mapping[str, Any]], *, best_step: int | None = None) -> Curves:
    """Read a log history as curves.

    Args:
        history: Records ``{"step", "step_loss", "tokens", "seconds", "learning_rate"}`` of steps, of which
            the last three may be missing, and those of :meth:`DevScore.record`; others are passed over.
        best_step: See :class:`Curves`.
    """
    entries = list(history)
    steps = {int(entry["step"]): entry for entry in entries if "step_loss" in entry}
    order = sorted(steps)
    evaluated = evaluations(entries)
    names = sorted({name for one in evaluated for name in one.score.guards})
    return Curves(
        steps=tuple(order),
        losses=tuple(float(steps[step]["step_loss"]) for step in order),
        learning_rates=tuple(float(steps[step].get("learning_rate", "nan")) for step in order),
        tokens_per_second=tuple(tokens_per_second(steps[step]) for step in order),
        dev=tuple((one.step, one.score.dev) for one in evaluated),
        guards={
            name: tuple((one.step, one.score.guards[name]) for one in evaluated if name in one.score.guards)
            for name in names
        },
        best_step=best_step,
    )


def tokens_per_second(entry: Mapping[str, Any]) -> float:
    """Tokens over seconds of one step's record; NaN where it holds none."""
    seconds = float(entry.get("seconds", 0.0))
    return float(entry["tokens"]) / seconds if seconds > 0 and "tokens" in entry else float("nan")


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the records as JSON, one per line of the file, whole or not at all."""
    rows = ",\n".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) for entry in history)
    write_whole_text(path, f"[\n{rows}\n]\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_history` wrote.

    Raises:
        DataError: If the file is missing or no history.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} is no training history: {error}. stm-train finetune writes it as history.json."
        raise DataError(message) from error
    if not isinstance(entries, list) or not all(isinstance(one, dict) and "step" in one for one in entries):
        message = f"{path} is no training history: it must be a JSON list of records with a step each."
        raise DataError(message)
    return entries


def _limit(max_guard_loss: float | None) -> float:
    return float("inf") if max_guard_loss is None else max_guard_loss + 100 * _SAME
