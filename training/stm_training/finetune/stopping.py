"""Ctrl-C in a training: finish the step, write a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback


class StopWithCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Turns the first Ctrl-C into a checkpoint after the running step, and a stop; the second stops at once.

    For trainings in one process: several would each have to hear of it at the same step.

    Args:
        tell: Called with a line for the person who pressed it.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for Ctrl-C inside the block; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if self._asked:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, now that the checkpoint is whole.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed.
        """
        if self._asked:
            self._tell(f"Wrote a checkpoint at step {state.global_step} of {state.max_steps}.")
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._tell(
            "Stopping after this step; press Ctrl-C again to stop at once (back to the last checkpoint)."
        )
