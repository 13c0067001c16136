"""Progress of an encoding: a bar on stderr, or a function that is told."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

Progress = bool | Callable[[int, int], None]
"""True shows a bar on stderr; a function is called with (texts done, texts in all; 0 if not known)."""


class Reporter:
    """Counts finished texts and tells whoever asked. A context manager.

    Args:
        show_progress: What the caller asked for.
        total: Texts in all; None if not known.
    """

    def __init__(self, show_progress: Progress, total: int | None) -> None:
        self._tell = show_progress if callable(show_progress) else None
        self._wants_bar = show_progress is True
        self._bar: Any = None
        self._total = total
        self._done = 0

    def __enter__(self) -> Reporter:
        if self._wants_bar and self._total != 0:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="text", desc="encoding")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """Tell that ``count`` more texts are done."""
        self._done += count
        if self._tell is not None:
            self._tell(self._done, self._total or 0)
        if self._bar is not None:
            self._bar.update(count)
