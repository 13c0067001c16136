"""Lets the steps of a training run only when the benchmark says so, and times them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback


class Channel:
    """Lines of JSON to and from the benchmark; what libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out: TextIO = sys.stdout
        sys.stdout = sys.stderr

    def say(self, **message: Any) -> None:
        """Send a message."""
        print(json.dumps(message), file=self._out, flush=True)

    def hear(self) -> int:
        """Wait for the number of steps that may run next.

        Raises:
            SystemExit: If the benchmark is gone.
        """
        line = sys.stdin.readline()
        if not line:
            raise SystemExit("the benchmark is gone")
        return int(line)


class Gate(TrainerCallback):  # type: ignore[misc]
    """Stops after a step until further ones are let through, and keeps the time of each.

    A step's time is the wall clock from the end of the step before (or the moment it was let through) to its
    own end: tokenising, forward and backward passes, optimiser.

    Args:
        channel: Where permission comes from.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._left = 0
        self._seconds: list[float] = []
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait before the first step; its batch is the only one that is not timed."""
        self._channel.say(event="ready")
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the time; wait where the permitted steps are done."""
        now = time.perf_counter()
        self._seconds.append(now - self._started)
        self._started = now
        self._left -= 1
        if self._left == 0:
            self._channel.say(event="steps", seconds=self._seconds)
            self._seconds = []
            self._wait()

    def _wait(self) -> None:
        self._left = self._channel.hear()
        self._started = time.perf_counter()


def memory(key: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS now, VmHWM at its highest; 0 where there is none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = (line.split() for line in status.read_text().splitlines())
    return next((1024 * int(words[1]) for words in lines if words[0] == f"{key}:"), 0)
