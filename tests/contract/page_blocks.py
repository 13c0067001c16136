"""The code blocks of a Markdown page: which are run, which are not and why."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- no-run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_MODULE = "stm_training.cli"
SHELLS = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: Path of the page.
        line: Of its fence.
        language: After the fence.
        code: As it stands.
        reason: Why it is not run; None: it is.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, continued ones joined, comments gone."""
        joined = self.code.replace("\\\n", " ")
        return [line for line in (_without_comment(line) for line in joined.splitlines()) if line]

    @property
    def stm_train(self) -> list[list[str]]:
        """The arguments of every call of our command, also where another program starts it."""
        found = []
        for command in self.commands:
            words = shlex.split(command)
            if words[0] == "stm-train":
                found.append(words[1:])
            elif _MODULE in words:
                found.append(words[words.index(_MODULE) + 1 :])
        return found


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["code"],
            match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*", "", line).strip()
