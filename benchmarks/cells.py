"""Cells of a table: resumable jobs whose results are stored under a key of whatever decides them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stm_training.evaluate.significance import Interval, paired_bootstrap
from stm_training.evaluate.versions import installed_versions
from stm_training.pipeline.stages import source_digest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_ONLY_STORED: ContextVar[bool] = ContextVar("only_stored", default=False)


class NotStoredError(Exception):
    """A cell that was to be read has not been computed, or under another key."""


@contextmanager
def only_stored() -> Iterator[None]:
    """Within this context cells are read and never computed: a missing one raises ``NotStoredError``."""
    token = _ONLY_STORED.set(True)
    try:
        yield
    finally:
        _ONLY_STORED.reset(token)


@dataclass(frozen=True)
class CellStore:
    """Results of one table.

    Attributes:
        folder: Where the cells lie, one JSON file each.
        code: Packages whose source decides the figures.
        settings: What all cells share, JSON-serialisable.
    """

    folder: Path
    code: Sequence[str]
    settings: Any

    def key(self, decides: Any) -> str:
        """Changes with the cell's own settings, the shared ones and the code."""
        code = {name: source_digest(name) for name in self.code}
        document = json.dumps([decides, self.settings, code], sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()

    def run(self, name: str, decides: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Compute a cell, or read what an earlier run stored under the same key.

        Raises:
            NotStoredError: If it would have to be computed within :func:`only_stored`.
        """
        path, key = self.folder / f"{slug(name)}.json", self.key([name, decides])
        if path.exists():
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                return stored
        if _ONLY_STORED.get():
            raise NotStoredError(name)
        started = time.monotonic()
        head = {"cell": name, "key": key, "commit": commit(), "versions": installed_versions()}
        result = head | work() | {"seconds": round(time.monotonic() - started, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
        partial.replace(path)
        print(f"{name}: {result.get('means', '')} in {result['seconds']} s", flush=True)
        return result


def slug(name: str) -> str:
    """A file name for a cell."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in letters.split("-") if part)


def commit() -> str:
    """The commit that made a figure; '+' where the tree had changes."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def gain(cells: Sequence[dict[str, Any]], base: dict[str, Any], sets: Sequence[str]) -> Interval:
    """Difference to the base in the mean over sets; seeds are averaged per query first."""
    diffs = []
    for name in sets:
        queries = base["scores"][name]
        weight = sum(len(base["scores"][other]) for other in sets) / (len(sets) * len(queries))
        for query, reference in queries.items():
            own = float(np.mean([cell["scores"][name][query] for cell in cells]))
            diffs.append(weight * (own - reference))
    return paired_bootstrap(diffs)


def points(interval: Interval) -> str:
    """A difference with its interval, in points."""
    return f"{100 * interval.mean:+.2f} ({100 * interval.lo:+.2f} to {100 * interval.hi:+.2f})"
