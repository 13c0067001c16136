"""What ``stm-train doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]

COPY_AGAIN = "copy the folder again, whole, or make it anew: stm-train export MODEL --out FOLDER"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``problem`` means wrong or missing results; ``warning`` that something may go wrong.
        what: What was found, in plain words.
        remedy: The command or action that mends it; empty when all is well.
    """

    level: Level
    what: str
    remedy: str = ""


def ok(what: str) -> Finding:
    """Something that is as it should be."""
    return Finding("ok", what)


def warning(what: str, remedy: str = "") -> Finding:
    """Something that may go wrong."""
    return Finding("warning", what, remedy)


def problem(what: str, remedy: str) -> Finding:
    """Something that is wrong."""
    return Finding("problem", what, remedy)
