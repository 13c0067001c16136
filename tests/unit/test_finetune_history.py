"""Histories: which evaluation is the best, how long ago it was, and what the curves are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stm_retriever.errors import DataError
from stm_training.finetune.history import (
    DevScore,
    Evaluation,
    curves,
    evaluations,
    read_history,
    standing,
    worst_guard_loss,
    write_history,
)


def scored(*rows: tuple[float, float]) -> list[Evaluation]:
    """Evaluations every ten steps from (dev, guard)."""
    return [
        Evaluation(10 * number, DevScore(dev, {"general": guard})) for number, (dev, guard) in enumerate(rows)
    ]


def best_step(evaluated: list[Evaluation], max_guard_loss: float | None = 0.5) -> int | None:
    best = standing(evaluated, max_guard_loss).best
    return None if best is None else best.step


def test_the_highest_development_score_is_the_best_and_the_later_ones_are_waited() -> None:
    found = standing(scored((0.3, 0.5), (0.5, 0.5), (0.4, 0.5), (0.45, 0.5)), 0.5)
    assert (found.best and found.best.step, found.waited, found.refused) == (10, 2, ())
    assert not found.exhausted(3)
    assert found.exhausted(2)
    assert not found.exhausted(None)


def test_a_tie_goes_to_the_earlier_one() -> None:
    assert best_step(scored((0.3, 0.5), (0.5, 0.5), (0.5 + 1e-12, 0.5))) == 10


def test_where_training_only_harms_the_model_before_training_is_the_best() -> None:
    assert best_step(scored((0.5, 0.5), (0.4, 0.6))) == 0


def test_what_loses_too_much_on_a_guard_is_never_the_best_and_counts_as_waiting() -> None:
    found = standing(scored((0.3, 0.5), (0.4, 0.495), (0.9, 0.4949)), 0.5)
    assert (found.best and found.best.step, found.waited, found.refused) == (10, 1, (20,))


def test_guards_are_compared_with_step_0_and_not_with_the_best_so_far() -> None:
    # Two losses of 0.4 points each are 0.8 against the start.
    assert best_step(scored((0.3, 0.5), (0.4, 0.496), (0.5, 0.492))) == 10


def test_without_a_limit_guards_refuse_nothing() -> None:
    assert best_step(scored((0.3, 0.5), (0.4, 0.1)), None) == 10


def test_the_worst_guard_counts() -> None:
    start = DevScore(0.5, {"a": 0.4, "b": 0.4})
    assert worst_guard_loss(start, DevScore(0.5, {"a": 0.5, "b": 0.39})) == pytest.approx(1.0)
    assert worst_guard_loss(DevScore(0.5), DevScore(0.6)) == 0.0


def test_nothing_scored_is_no_best() -> None:
    found = standing([], 0.5)
    assert found.best is None
    assert not found.exhausted(1)


HISTORY = [
    DevScore(0.5, {"g": 0.4}, {"q1": 1.0, "q2": 0.0}).record(0),
    {"step": 1, "step_loss": 2.0, "tokens": 100, "seconds": 0.5, "learning_rate": 1e-3},
    {"step": 2, "step_loss": 1.5},
    DevScore(0.6, {"g": 0.3}).record(2),
    {"step": 2, "train_runtime": 3.0},
]


def test_curves_hold_the_steps_and_the_evaluations_and_pass_over_other_records() -> None:
    read = curves(HISTORY, best_step=2)
    assert (read.steps, read.losses) == ((1, 2), (2.0, 1.5))
    assert read.learning_rates[0] == 1e-3
    assert math.isnan(read.learning_rates[1])
    assert read.tokens_per_second[0] == 200.0
    assert math.isnan(read.tokens_per_second[1])
    assert read.dev == ((0, 0.5), (2, 0.6))
    assert read.guards == {"g": ((0, 0.4), (2, 0.3))}
    assert read.best_step == 2


def test_a_step_that_was_made_again_after_a_resume_counts_once() -> None:
    twice = [*HISTORY, {"step": 2, "step_loss": 1.25}, DevScore(0.7, {"g": 0.3}).record(2)]
    read = curves(twice)
    assert (read.steps, read.losses) == ((1, 2), (2.0, 1.25))
    assert read.dev == ((0, 0.5), (2, 0.7))


def test_scores_survive_the_file(tmp_path: Path) -> None:
    write_history(tmp_path / "history.json", HISTORY)
    read = evaluations(read_history(tmp_path / "history.json"))
    assert read[0].score == DevScore(0.5, {"g": 0.4}, {"q1": 1.0, "q2": 0.0})
    assert [one.step for one in read] == [0, 2]


def test_an_empty_history_is_read_back(tmp_path: Path) -> None:
    write_history(tmp_path / "history.json", [])
    assert read_history(tmp_path / "history.json") == []


@pytest.mark.parametrize("text", [None, "{", '{"a": 1}', "[1]"])
def test_a_file_that_is_no_history_is_an_error_that_names_it(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "history.json").write_text(text)
    with pytest.raises(DataError, match="is no training history"):
        read_history(tmp_path / "history.json")
