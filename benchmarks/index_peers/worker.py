"""One side of benchmarks/index_speed.py in a process of its own: does what it is told, line by line.

    PYTHON benchmarks/index_peers/worker.py TASK.json

The task names the side, the folder with the data, the folder to work in, and the number of documents. Each
line on standard input is a command in JSON, each line on standard output its answer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

K = 10
Floats = NDArray[np.float32]


class Side(Protocol):
    """A store of texts and vectors under test."""

    packages: tuple[str, ...]

    def build(self, texts: list[str], vectors: Floats) -> None:
        """Add documents "0", "1", ... in calls as its users would make them, and save."""
        ...

    def open(self) -> None:
        """Open what was saved."""
        ...

    def search(self, vector: Floats) -> list[tuple[str, str]]:
        """Return ids and texts of the K nearest."""
        ...

    def search_batch(self, vectors: Floats) -> list[list[tuple[str, str]]]:
        """Return them for each row, as fast as the library lets one."""
        ...


class Worker:
    """Carries commands out."""

    def __init__(self, task: dict[str, Any]) -> None:
        data = Path(task["data"])
        self._folder = Path(task["folder"])
        self._count = int(task["count"])
        self._data = data
        self._queries: Floats = np.load(data / "queries.npy")
        module = importlib.import_module(task["module"])
        self.side: Any = module.make(self._folder, **task.get("options", {}))

    def build(self) -> dict[str, Any]:
        """Add all documents."""
        with (self._data / "texts.json").open(encoding="utf-8") as file:
            texts = json.load(file)[: self._count]
        vectors = np.load(self._data / "vectors.npy", mmap_mode="r")[: self._count]
        vectors = np.ascontiguousarray(vectors)
        started = time.perf_counter()
        self.side.build(texts, vectors)
        seconds = time.perf_counter() - started
        files = [path.stat().st_size for path in self._folder.rglob("*") if path.is_file()]
        return {"seconds": seconds, "disk_bytes": sum(files)}

    def open(self) -> dict[str, Any]:
        """Open, and answer one query."""
        before = memory()
        started = time.perf_counter()
        self.side.open()
        seconds = time.perf_counter() - started
        first = time.perf_counter()
        self.side.search(self._queries[0])
        return {
            "seconds": seconds,
            "first_search_s": time.perf_counter() - first,
            "memory_bytes": memory() - before,
        }

    def search(self, first: int, count: int) -> dict[str, Any]:
        """Time single searches."""
        times = []
        for query in self._queries[first : first + count]:
            started = time.perf_counter()
            found = self.side.search(query)
            times.append(time.perf_counter() - started)
            if not found or not found[0][1]:
                raise SystemExit("a search came back without texts")
        return {"times": times}

    def batch(self) -> dict[str, Any]:
        """Time all queries in one call, and say what was found."""
        started = time.perf_counter()
        found = self.side.search_batch(self._queries)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "ids": [[int(name) for name, _ in row] for row in found]}

    def memory(self) -> dict[str, Any]:
        """Resident memory of the process now."""
        return {"bytes": memory()}

    def versions(self) -> dict[str, Any]:
        """Versions of what the side runs on."""
        return {name: metadata.version(name) for name in self.side.packages}


def memory() -> int:
    """Resident bytes of this process, mapped files included; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main() -> int:
    """Answer commands until there are no more."""
    out, sys.stdout = sys.stdout, sys.stderr
    worker = Worker(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        call = getattr(worker, name, None) or getattr(worker.side, name)
        print(json.dumps(call(**command)), file=out, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
