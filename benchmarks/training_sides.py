"""The sides of benchmarks/training_speed.py, and the processes that they train in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import python_of

OURS, PEER, TUNED = "stm-retriever", "sentence-transformers", "sentence-transformers-tuned"
_WORKER = Path(__file__).resolve().parent / "training_peers" / "worker.py"


@dataclass(frozen=True)
class Side:
    """One way to train: ours, or one form of a peer.

    Attributes:
        name: For tables.
        peer: Whose form it is.
        bf16: Autocast in the peer's trainer; ours chooses by itself.
        mini_batch_size: Of the cached loss; ``None`` for the plain one.
    """

    name: str
    peer: str
    bf16: bool = False
    mini_batch_size: int | None = None


SIDES = (
    Side("ours", OURS),
    Side("plain", PEER),
    Side("cached-32", PEER, mini_batch_size=32),
    Side("tuned plain", TUNED, bf16=True),
    Side("tuned cached-16", TUNED, bf16=True, mini_batch_size=16),
    Side("tuned cached-48", TUNED, bf16=True, mini_batch_size=48),
)


class Process:
    """A side at work in a cell, in a process that trains only when it is let.

    Args:
        side: Which one.
        task: What training_peers/worker.py reads.
        folder: For the task and for what the process says to standard error; made here.
        environment: Variables for the process beside our own.
    """

    def __init__(
        self, side: Side, task: Mapping[str, Any], folder: Path, environment: Mapping[str, str]
    ) -> None:
        folder.mkdir(parents=True)
        file = folder / "task.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        self.side = side
        self.seconds: list[float] = []
        self._errors = (folder / "errors.txt").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python_of("sentence-transformers")), str(_WORKER), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def hear(self, event: str) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            SystemExit: If the process ends or says something else.
        """
        line = self._process.stdout.readline() if self._process.stdout else ""
        message: dict[str, Any] = json.loads(line) if line else {}
        if message.get("event") != event:
            self._errors.flush()
            tail = Path(self._errors.name).read_text(encoding="utf-8")[-3000:]
            raise SystemExit(f"{self.side.name} said {line!r} instead of {event!r}:\n{tail}")
        return message

    def let(self, steps: int) -> None:
        """Permit steps."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()

    def run(self, steps: int) -> None:
        """Let steps run and keep their times."""
        self.let(steps)
        self.seconds += self.hear("steps")["seconds"]
