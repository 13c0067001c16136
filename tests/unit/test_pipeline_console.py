"""Progress: bars in a terminal, a line now and then in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stm_training.pipeline import console as console_module
from stm_training.pipeline.console import RunConsole


def log_of(monkeypatch: pytest.MonkeyPatch, seconds: list[float], *, quiet: bool) -> str:
    """What a log file holds after three steps of a bar, at these times."""
    output = io.StringIO()
    clock = iter(seconds)
    monkeypatch.setattr(console_module.time, "monotonic", lambda: next(clock, seconds[-1]))
    run = RunConsole(quiet=quiet, console=Console(file=output, width=80))
    with run.bar("training a", total=3) as advance:
        for step in (1, 2, 3):
            advance(step, note="loss 0.5")
    return output.getvalue()


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_of(monkeypatch, [0, 1, 31, 31, 32], quiet=False).split("\n") == [
        "    training a 2/3 loss 0.5",
        "",
    ]


def test_quiet_means_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_of(monkeypatch, [0, 100, 200, 300], quiet=True) == ""


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    run = RunConsole(console=Console(file=output, width=120, force_terminal=True))
    with run.bar("training a", total=3) as advance:
        advance(3, note="loss 0.5")
    assert "3/3" in output.getvalue()


def test_stage_lines_are_printed_as_they_are() -> None:
    output = io.StringIO()
    RunConsole(console=Console(file=output)).announce("[1/3] corpus")
    assert output.getvalue() == "[1/3] corpus\n"
