"""What a person sees while a run works: one line per stage and bars inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
_SECONDS_BETWEEN_LINES = 30


class RunConsole:
    """Prints a run's progress.

    Args:
        quiet: No bars and details; stage lines stay.
        console: Where to print; standard output by default.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console()
        self._quiet = quiet

    def announce(self, line: str) -> None:
        """Print a stage's line, literally."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def detail(self, line: str) -> None:
        """Print a line that nobody needs who asked for quiet."""
        if not self._quiet:
            self.announce(line)

    @contextmanager
    def bar(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A progress bar; the callable takes ``completed``, and optionally ``total`` and ``note``.

        Where the output is no terminal (a log file), a line every half minute instead.
        """
        if not self.console.is_terminal:
            yield self._lines(description, total)
            return
        progress = Progress(
            TextColumn("    {task.description:<24.24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=self._quiet,
            transient=True,
        )
        with progress:
            task = progress.add_task(description, total=total, note="")

            def advance(completed: int, total: int | None = None, note: str = "") -> None:
                progress.update(task, completed=completed, total=total, note=note)

            yield advance

    def _lines(self, description: str, known_total: int | None) -> Advance:
        last = time.monotonic()

        def advance(completed: int, total: int | None = None, note: str = "") -> None:
            nonlocal last
            if self._quiet or time.monotonic() - last < _SECONDS_BETWEEN_LINES:
                return
            last = time.monotonic()
            self.announce(f"    {description} {completed}/{total or known_total or '?'} {note}".rstrip())

        return advance
