"""How far a synthesis is, what it has cost, and when it will be done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from stm_training.llm.budget import Meter
from stm_training.synthesize.asking import Asker

_WINDOW = 200  # documents whose pace foretells the rest: what a journal answered at once is soon forgotten


@dataclass(frozen=True, slots=True)
class SynthesisProgress:
    """One look at a synthesis.

    Attributes:
        done: Documents worked on.
        total: Documents in all.
        asked: Completions asked for in this run.
        reused: Completions that the journal held.
        rate: Documents per second, lately.
        tokens: Prompt and completion tokens of this journal so far, earlier runs included.
        cost: Likewise, in the currency of the prices.
        eta_seconds: Until all documents are done; ``None`` before that can be told.
    """

    done: int
    total: int
    asked: int
    reused: int
    rate: float
    tokens: int
    cost: float
    eta_seconds: float | None

    def note(self) -> str:
        """A short line for a progress bar."""
        parts = [f"{self.rate:.1f}/s", f"{_short(self.tokens)} tokens"]
        if self.cost:
            parts.append(f"cost {self.cost:.2f}")
        if self.reused:
            parts.append(f"{self.reused} from the journal")
        if self.eta_seconds is not None:
            parts.append(f"{_clock(self.eta_seconds)} left")
        return ", ".join(parts)


class Watcher:
    """Turns "so many documents are done" into :class:`SynthesisProgress`.

    Args:
        watch: Who wants to know.
        total: Documents in all.
        asker: Counts completions.
        meter: Counts tokens and cost.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        watch: Callable[[SynthesisProgress], None],
        total: int,
        asker: Asker,
        meter: Meter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._total = total
        self._asker = asker
        self._meter = meter
        self._clock = clock
        self._times: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_WINDOW)

    def __call__(self, done: int) -> None:
        """Tell that so many documents are done."""
        now = self._clock()
        began, before = self._times[0]
        self._times.append((now, done))
        elapsed = now - began
        rate = (done - before) / elapsed if elapsed > 0 else 0.0
        spent = self._meter.spent
        self._watch(
            SynthesisProgress(
                done=done,
                total=self._total,
                asked=self._asker.asked,
                reused=self._asker.reused,
                rate=rate,
                tokens=spent.prompt_tokens + spent.completion_tokens,
                cost=spent.cost,
                eta_seconds=(self._total - done) / rate if rate > 0 else None,
            )
        )


def _short(number: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
