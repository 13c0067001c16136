"""Scores that outlive a kill: a line per prompt and batch of queries, for one model and collection."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODE = 0o600  # prompts may be a user's own

Row = tuple[str, str, float, int | None, tuple[str, ...]]
"""Prompt, query id, nDCG@10, rank of the first relevant document, passages above it."""


class KeptScores:
    """An append-only JSONL file; one of other inputs is begun anew, and a torn last line is left out.

    Args:
        path: The file; made where it is not there.
        inputs: Hash of all that decides a score beside the prompt.

    Attributes:
        rows: What the file held.
    """

    def __init__(self, path: Path, inputs: str) -> None:
        self._path = path
        self.rows: list[Row] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        whole = [line for line in map(_read, lines[:-1]) if line is not None]
        if whole and whole[0].get("inputs") == inputs:
            self.rows = [row for line in whole[1:] for row in _rows(line)]
            if lines[-1]:  # torn by a kill
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size - len(lines[-1]))
        else:
            path.unlink(missing_ok=True)
            self._write({"inputs": inputs})

    def append(self, prompt: str, results: Mapping[str, tuple[float, int | None, tuple[str, ...]]]) -> None:
        """Keep the results of some queries under a prompt."""
        self._write({"prompt": prompt, "results": {name: list(value) for name, value in results.items()}})

    def _write(self, line: Mapping[str, Any]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _rows(line: Mapping[str, Any]) -> list[Row]:
    return [
        (line["prompt"], name, float(ndcg), first, tuple(above))
        for name, (ndcg, first, above) in line.get("results", {}).items()
    ]
