"""What a person sees while a training runs: one line, or the note of a progress bar."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import TrainerCallback

from stm_training.finetune.history import DEV

Advance = Callable[..., None]
"""Called with the steps done, ``total=`` and ``note=``; :meth:`RunConsole.bar` gives one."""

_LAST = 20  # steps that the loss and the speed are averaged over


class LiveFigures(TrainerCallback):  # type: ignore[misc]
    """Tells loss, development score, tokens/s and the time left after each step.

    Args:
        advance: The progress bar; only the first process calls it.
        clock: Seconds, from any start.
    """

    def __init__(self, advance: Advance, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._advance = advance
        self._clock = clock
        self._started = 0.0
        self._first_step = 0
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=_LAST)
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a resumed training starts at its step."""
        self._started, self._first_step, self._read = self._clock(), state.global_step, 0
        self._recent.clear()
        self._dev: list[float] = []
        self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell where the training stands."""
        self._tell(state)

    def _tell(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._take_in(state.log_history[self._read :])
        self._read = len(state.log_history)
        self._advance(state.global_step, total=state.max_steps, note=self.note(state))

    def _take_in(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            if "step_loss" in entry:
                self._recent.append(entry)
            if DEV in entry:
                self._dev.append(float(entry[DEV]))

    def note(self, state: Any) -> str:
        """The figures in words, without the step."""
        parts = []
        if self._recent:
            losses = [float(entry["step_loss"]) for entry in self._recent]
            parts.append(f"loss {math.fsum(losses) / len(losses):.3f}")
        if self._dev:
            start = f" (start {self._dev[0]:.4f})" if len(self._dev) > 1 else ""
            parts.append(f"dev nDCG {self._dev[-1]:.4f}{start}")
        if speed := self._tokens_per_second():
            parts.append(f"{shown_count(speed)} tokens/s")
        done = state.global_step - self._first_step
        if done > 0 and state.global_step < state.max_steps:
            # Wall time, so that evaluations and checkpoints count too.
            per_step = (self._clock() - self._started) / done
            parts.append(f"{shown_time(per_step * (state.max_steps - state.global_step))} left")
        return "  ".join(parts)

    def _tokens_per_second(self) -> float:
        timed = [entry for entry in self._recent if "tokens" in entry and entry.get("seconds", 0) > 0]
        seconds = math.fsum(float(entry["seconds"]) for entry in timed)
        return sum(int(entry["tokens"]) for entry in timed) / seconds if seconds > 0 else 0.0


def shown_count(value: float) -> str:
    """A count with three figures: 950, 12.3k, 1.25M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def shown_time(seconds: float) -> str:
    """A duration that one can take in at a glance."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
