"""The Pareto set of a search, domain against general, and the choice of a point on it."""

from __future__ import annotations

from collections.abc import Sequence

from stm_training.merge.search.records import Trial

_SAME = 1e-9  # nDCG means closer than this are a tie


def pareto_front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Indices of the trials that no other trial beats on both the domain and the guards.

    Trials ended early have no guard scores and cannot be on it. Of trials equal in both, the first stays.
    Without guards it is the best trial alone.

    Args:
        trials: Trials of one search.

    Returns:
        Indices, by domain score, highest first.
    """
    places = [index for index, trial in enumerate(trials) if not trial.pruned]
    places.sort(key=lambda index: (-_domain(trials[index]), -_general(trials[index]), index))
    front: list[int] = []
    for index in places:
        if not front or _general(trials[index]) > _general(trials[front[-1]]):
            front.append(index)
    return tuple(front)


def choose_by(trials: Sequence[Trial], max_guard_loss: float) -> Trial | None:
    """The highest domain score among the trials that lose at most so much on every guard.

    Ties go to fewer experts, then to the earlier trial. It is always on the Pareto set where there is one
    guard; with several, their worst loss decides, not their mean.

    Args:
        trials: Trials of one search.
        max_guard_loss: In points (0-100).

    Returns:
        The trial; None if every one of them loses more, or was ended early.
    """
    allowed = [
        trial
        for trial in trials
        if not trial.pruned and trial.worst_guard_loss <= max_guard_loss + 100 * _SAME
    ]
    if not allowed:
        return None
    top = max(map(_domain, allowed))
    tied = [trial for trial in allowed if top - _domain(trial) <= _SAME]
    return min(tied, key=lambda trial: (len(trial.recipe.weights), trial.number))


def _domain(trial: Trial) -> float:
    return float("-inf") if trial.domain is None else trial.domain


def _general(trial: Trial) -> float:
    return 0.0 if trial.general is None else trial.general
