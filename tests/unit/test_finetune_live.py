"""The line that a person watches: figures so far, speed, and the time left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stm_training.finetune.history import DevScore
from stm_training.finetune.live import LiveFigures, shown_count, shown_time


class Line:
    def __init__(self) -> None:
        self.told: list[tuple[int, int | None, str]] = []
        self.seconds = 0.0
        self.live = LiveFigures(
            lambda done, total=None, note="": self.told.append((done, total, note)),
            clock=lambda: self.seconds,
        )

    def begin(self, state: Any) -> None:
        self.live.on_train_begin(None, state, None)

    def step(self, state: Any, seconds: float = 2.0) -> str:
        self.seconds += seconds
        state.global_step += 1
        state.log_history.append(
            {"step": state.global_step, "step_loss": 4.0 / state.global_step, "tokens": 3000, "seconds": 0.5}
        )
        self.live.on_step_end(None, state, None)
        return self.told[-1][2]


def state(step: int = 0, first: bool = True, history: list[dict[str, Any]] | None = None) -> Any:
    return SimpleNamespace(
        global_step=step, max_steps=100, log_history=history or [], is_world_process_zero=first
    )


def test_loss_score_speed_and_time_left_are_told_after_each_step() -> None:
    line, now = Line(), state()
    line.begin(now)
    now.log_history.append(DevScore(0.25).record(0))
    assert line.step(now) == "loss 4.000  dev nDCG 0.2500  6k tokens/s  4 min left"
    now.log_history.append(DevScore(0.375).record(1))
    assert line.step(now) == "loss 3.000  dev nDCG 0.3750 (start 0.2500)  6k tokens/s  4 min left"
    assert [done for done, _, _ in line.told] == [0, 1, 2]
    assert {total for _, total, _ in line.told} == {100}


def test_a_resumed_training_counts_the_time_of_its_own_steps_alone() -> None:
    history = [DevScore(0.25).record(0), {"step": 90, "step_loss": 1.0, "tokens": 3000, "seconds": 0.5}]
    line, now = Line(), state(90, history=history)
    line.begin(now)
    assert line.told == [(90, 100, "loss 1.000  dev nDCG 0.2500  6k tokens/s")]
    assert line.step(now, seconds=3.0).endswith("27 s left")


def test_the_last_step_has_no_time_left() -> None:
    line, now = Line(), state(99)
    line.begin(now)
    assert "left" not in line.step(now)


def test_only_the_first_process_tells() -> None:
    line, now = Line(), state(first=False)
    line.begin(now)
    now.global_step = 1
    line.live.on_step_end(None, now, None)
    assert line.told == []


@pytest.mark.parametrize(
    ("value", "shown"), [(950, "950"), (12_345, "12.3k"), (1_250_000, "1.25M"), (0.5, "0.5")]
)
def test_counts_have_three_figures(value: float, shown: str) -> None:
    assert shown_count(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1 s"), (59, "59 s"), (61, "2 min"), (7140, "119 min"), (7150, "2 h 0 min"), (7201, "2 h 1 min")],
)
def test_durations_are_rounded_up(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown
