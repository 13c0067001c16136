"""How fast the index is beside bare FAISS and the vector stores that LangChain and LlamaIndex users have.

    python benchmarks/index_speed.py --environments     once: the peers' environments
    python benchmarks/index_speed.py --json index_speed.json

By vector, texts included; encoding is no part of it. 200,000 documents of 384 dimensions, their vectors mixed
from real ones, for our kinds, langchain-community's FAISS and LlamaIndex's FaissVectorStore; 10,000 for those
and for the stores that compare in Python: InMemoryVectorStore, SimpleVectorStore, Qdrant's local mode. Recall
is measured on real passages (MedQuAD, Evidence Inference) and questions. Each side lives in a process of its
own, on one thread for single searches and batches; rounds go in turn, and our side and bare FAISS take turns
query by query in one process. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environments import ROOT, python_of
from index_peers import requirements
from index_peers.data import Data, exact, mixed, real

OURS = "stm-retriever"
KINDS = ("flat", "hnsw", "ivf", "ivf-pq")
MORE_KINDS = (*KINDS, "sq8", "rabitq", "binary")
K = 10
_WORKER = Path(__file__).resolve().parent / "index_peers" / "worker.py"
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    large: int
    small: int
    passages: int
    rounds: int
    queries: int
    durable: int
    kinds: tuple[str, ...]


SIZES = {
    "tiny": Size(2500, 1000, 3000, 2, 10, 200, KINDS),
    "default": Size(200_000, 10_000, 16_000, 5, 40, 4000, KINDS),
    "full": Size(200_000, 10_000, 32_000, 9, 100, 20_000, MORE_KINDS),
}


@dataclass(frozen=True)
class Peer:
    """Somebody else's store."""

    name: str
    environment: str
    module: str
    store: str
    large: bool = False


PEERS = (
    Peer("langchain-community FAISS", "langchain-community", "langchain_side", "faiss", large=True),
    Peer("LangChain InMemoryVectorStore", "langchain-community", "langchain_side", "memory"),
    Peer(
        "LlamaIndex FaissVectorStore",
        "llama-index-vector-stores-faiss",
        "llama_index_side",
        "faiss",
        large=True,
    ),
    Peer("LlamaIndex SimpleVectorStore", "llama-index-vector-stores-faiss", "llama_index_side", "simple"),
    Peer("Qdrant local", "qdrant-client", "qdrant_side", ""),
)


class Process:
    """A side in a process of its own, asked line by line."""

    def __init__(self, python: Path, task: Mapping[str, Any], folder: Path, *, one_thread: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.parent / f"{folder.name}.task.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        self._errors = (folder.parent / f"{folder.name}.errors.txt").open("a+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(_WORKER), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(_ONE_THREAD if one_thread else {})},
            text=True,
        )
        self._answer()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Carry out one command."""
        if self._process.stdin is None:
            raise SystemExit("the process takes no commands")
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise SystemExit(f"a side ended with {self._process.returncode}:\n{self._errors.read()[-3000:]}")
        return json.loads(line)


@dataclass
class Side:
    """A side with what was measured of it."""

    name: str
    python: Path
    task: dict[str, Any]
    folder: Path
    figures: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None

    def build(self, count: int, before: float = 0.0) -> None:
        """Add all documents, in a process that ends afterwards; ``before``: seconds spent already."""
        process = Process(self.python, self.task, self.folder, one_thread=False)
        built = process.ask("build")
        process.close()
        self.figures["add_seconds"] = built["seconds"] + before
        self.figures["add_per_s"] = count / self.figures["add_seconds"]
        self.figures["disk_mb"] = built["disk_bytes"] / 1e6

    def open(self) -> Process:
        """Open what was built, in a new process that stays."""
        self.process = Process(self.python, self.task, self.folder, one_thread=True)
        self.figures["versions"] = self.process.ask("versions")
        opened = self.process.ask("open")
        self.figures["open_s"] = opened["seconds"]
        self.figures["first_search_s"] = opened["first_search_s"]
        self.figures["memory_mb"] = opened["memory_bytes"] / 1e6
        return self.process

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.close()
            self.process = None


def our_side(name: str, kind: str, data: Data, folder: Path, source: Side | None = None) -> Side:
    """Our side, filled from scratch or from another one's documents."""
    options = {"kind": kind, "source": "" if source is None else str(source.folder / "index")}
    task = {"module": "ours", "options": options, **_common(data, folder / kind)}
    return Side(name, Path(sys.executable), task, folder / kind)


def peer_side(peer: Peer, data: Data, folder: Path) -> Side:
    """A peer's side."""
    place = folder / peer.name.replace(" ", "-")
    task = {"module": peer.module, "options": {"store": peer.store}, **_common(data, place)}
    return Side(peer.name, python_of(peer.environment), task, place)


def measure_recall(kinds: Sequence[str], data: Data, folder: Path) -> dict[str, float]:
    """Share of the exact ten nearest that each kind finds by default, on real passages and questions."""
    true = exact(data, K)
    found = {}
    flat = our_side("flat", "flat", data, folder)
    flat.build(data.count)
    for kind in kinds:
        side = flat if kind == "flat" else our_side(kind, kind, data, folder, flat)
        if side is not flat:
            side.build(data.count)
        ids = side.open().ask("batch")["ids"]
        side.close()
        shares = [len(set(row) & set(truth)) / K for row, truth in zip(ids, true.tolist(), strict=True)]
        found[kind] = statistics.fmean(shares)
        print(f"  recall@10 {kind}: {found[kind]:.3f}", flush=True)
    return found


def measure_large(size: Size, data: Data, folder: Path) -> list[Side]:
    """Our kinds and the peers that can, at full size."""
    flat = our_side(f"{OURS} flat", "flat", data, folder)
    flat.build(data.count)
    sides = [flat]
    for kind in size.kinds[1:]:
        side = our_side(f"{OURS} {kind}", kind, data, folder, flat)
        side.build(data.count, flat.figures["add_seconds"])
        sides.append(side)
    for peer in PEERS:
        if peer.large:
            sides.append(peer_side(peer, data, folder))
            sides[-1].build(data.count)
    _serve(sides, data, size)
    return sides


def measure_small(size: Size, data: Data, folder: Path) -> list[Side]:
    """Everybody, at the size that stores in plain Python can hold."""
    sides = [our_side(f"{OURS} flat", "flat", data, folder)]
    sides += [peer_side(peer, data, folder) for peer in PEERS]
    for side in sides:
        side.build(data.count)
    _serve(sides, data, size)
    return sides


def _serve(sides: Sequence[Side], data: Data, size: Size) -> None:
    """Open all, then let them search in turn."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    bare: dict[str, list[float]] = {side.name: [] for side in sides}
    queries = str(data.folder / "queries.npy")
    try:
        for side in sides:
            side.open().ask("search", first=0, count=3)
        for number in range(size.rounds):
            place = {"first": (number * size.queries) % len(data.queries), "count": size.queries}
            for side in sides:
                if side.process is None:
                    continue
                if side.name.startswith(OURS):
                    both = side.process.ask("paired", queries=queries, **place)
                    times[side.name] += both["ours"]
                    bare[side.name] += both["bare"]
                else:
                    times[side.name] += side.process.ask("search", **place)["times"]
        for side in sides:
            _last(side, data, size, times[side.name], bare[side.name])
    finally:
        for side in sides:
            side.close()


def _last(side: Side, data: Data, size: Size, times: list[float], bare: list[float]) -> None:
    if side.process is None:
        return
    side.figures["p50_ms"] = 1000 * statistics.median(times)
    side.figures["p99_ms"] = 1000 * float(np.quantile(times, 0.99))
    batch = side.process.ask("batch")
    side.figures["batch_qps"] = len(batch["ids"]) / batch["seconds"]
    true = exact(data, K).tolist()
    side.figures["recall"] = statistics.fmean(
        len(set(row) & set(truth)) / K for row, truth in zip(batch["ids"], true, strict=True)
    )
    if bare:
        side.figures["bare_p50_ms"] = 1000 * statistics.median(bare)
        files = {name: str(data.folder / f"{name}.npy") for name in ("queries", "vectors")}
        filtered = side.process.ask("filtered", **files, count=size.rounds * size.queries)
        side.figures["filtered_ms"] = 1000 * statistics.median(filtered["filtered"])
        side.figures["unfiltered_ms"] = 1000 * statistics.median(filtered["unfiltered"])
        side.figures["filtered_recall"] = filtered["recall"]


def measure_durability(size: Size, data: Data, folder: Path) -> dict[str, float]:
    """Documents added per second with synchronous=FULL and NORMAL, in calls of 1 and of 100."""
    found = {}
    for call in (1, 100):
        place = folder / f"calls-of-{call}"
        task = {"module": "ours", "options": {"durability": True}, **_common(data, place)}
        process = Process(Path(sys.executable), task, place, one_thread=True)
        count = size.durable if call > 1 else size.durable // 10
        answer = process.ask("compare", data=str(data.folder), count=count, call=call)
        process.close()
        for setting, seconds in answer["seconds"].items():
            found[f"{setting}, calls of {call}"] = count / seconds
    return found


def summary(
    name: str, recall: Mapping[str, float], large: Sequence[Side], small: Sequence[Side]
) -> dict[str, Any]:
    """The figures that have targets."""
    ours = {side.name.removeprefix(f"{OURS} "): side.figures for side in large if side.name.startswith(OURS)}
    mine = small[0].figures["p50_ms"]
    return {
        "p50_vs_bare_faiss": {kind: found["p50_ms"] / found["bare_p50_ms"] for kind, found in ours.items()},
        "p50_extra_ms": {kind: found["p50_ms"] - found["bare_p50_ms"] for kind, found in ours.items()},
        "speedup_at_10k": {side.name: side.figures["p50_ms"] / mine for side in small[1:]},
        "open_200k_s": max(found["open_s"] for found in ours.values()),
        "filtered_ms": {kind: found["filtered_ms"] for kind, found in ours.items()},
        "filtered_vs_unfiltered": {
            kind: found["filtered_ms"] / found["unfiltered_ms"] for kind, found in ours.items()
        },
        "recall@10": dict(recall),
        "size": name,
    }


def table(title: str, sides: Sequence[Side]) -> str:
    """A Markdown table of one size."""
    columns = {
        "add/s": ("add_per_s", "{:.0f}"),
        "p50 ms": ("p50_ms", "{:.3f}"),
        "p99 ms": ("p99_ms", "{:.3f}"),
        "bare FAISS p50 ms": ("bare_p50_ms", "{:.3f}"),
        "1 % filter p50 ms": ("filtered_ms", "{:.3f}"),
        "its recall": ("filtered_recall", "{:.3f}"),
        "batch QPS": ("batch_qps", "{:.0f}"),
        "recall@10": ("recall", "{:.3f}"),
        "open s": ("open_s", "{:.3f}"),
        "memory MB": ("memory_mb", "{:.0f}"),
        "disk MB": ("disk_mb", "{:.0f}"),
    }
    lines = [f"### {title}", "", "| store | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for side in sides:
        cells = [
            form.format(side.figures[key]) if key in side.figures else "" for key, form in columns.values()
        ]
        lines.append(f"| {side.name} | " + " | ".join(cells) + " |")
    versions = {name: version for side in sides for name, version in side.figures["versions"].items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--environments", action="store_true", help="make the peers' environments and stop")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "index_speed", help="encoded passages")
    parser.add_argument("--work", type=Path, help="where the stores are built (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures with targets")
    parser.add_argument("--details", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    requirements.register()
    if arguments.environments:
        requirements.make()
        return 0
    missing = sorted({peer.environment for peer in PEERS if not python_of(peer.environment).exists()})
    if missing:
        print(
            f"no environment for {', '.join(missing)}. Run: python {sys.argv[0]} --environments",
            file=sys.stderr,
        )
        return 2
    work = Path(tempfile.mkdtemp(prefix="index-speed-", dir=arguments.work))
    try:
        _run(arguments, SIZES[arguments.size], work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _run(arguments: argparse.Namespace, size: Size, work: Path) -> None:
    started = time.perf_counter()
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    passages = real(size.passages, arguments.cache)
    recall = measure_recall(size.kinds, passages, work / "real")
    data = {count: mixed(passages, count, work / f"data-{count}") for count in (size.large, size.small)}
    small = measure_small(size, data[size.small], work / "small")
    print(table(f"{size.small} x {passages.vectors.shape[1]}", small), "\n", flush=True)
    large = measure_large(size, data[size.large], work / "large")
    print(table(f"{size.large} x {passages.vectors.shape[1]}", large), "\n", flush=True)
    durability = measure_durability(size, data[size.small], work / "durability")
    figures = summary(arguments.size, recall, large, small)
    for name, value in durability.items():
        print(f"synchronous={name}: {value:.0f} documents/s")
    for name, value in figures.items():
        shown = {key: round(one, 3) for key, one in value.items()} if isinstance(value, dict) else value
        print(f"{name}: {shown}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.details is not None:
        details = {
            **figures,
            "large": {side.name: side.figures for side in large},
            "small": {side.name: side.figures for side in small},
            "added_per_s": durability,
            "passages": passages.count,
            "load_before": load,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        }
        arguments.details.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")


def _common(data: Data, folder: Path) -> dict[str, Any]:
    return {"data": str(data.folder), "folder": str(folder), "count": data.count}


if __name__ == "__main__":
    raise SystemExit(main())
