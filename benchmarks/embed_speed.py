"""How fast and how lean encoding is beside what people use, on the same model, texts and cores.

    make bench-env
    .venv/bin/python benchmarks/embed_speed.py --json embed_speed.json           (at most 15 minutes)
    .venv/bin/python benchmarks/embed_speed.py --full --json embed_speed.json    (for RESULTS.md)
    .venv/bin/python benchmarks/embed_speed.py --growth                          (1k to 100k texts, ours)

all-MiniLM-L6-v2 and a random 4-layer Qwen3; documents of medquad cut at 256 tokens and of disease_ontology
(STM_DATA), and 500 questions one by one. Ours in fp32, w8 and int8 and, where it is installed, on OpenVINO;
sentence-transformers (torch), LangChain's and LlamaIndex's stock Hugging Face classes, and fastembed with the
very ONNX file that ours runs, each as it comes and in an environment of its own. Every side lives in a
process of its own, pinned to the same two cores; they take turns with the same chunk of texts, again and
again, so that a busy machine is busy for all.

**Same vectors**: the least cosine to sentence-transformers' over the first chunk; below 0.9999 for a float32
side the benchmark fails. int8 and w8: nDCG@10 against fp32's on two panel sets. **Memory**: VmHWM, and the
most anonymous pages. **Load**: from the first line of the process to the first query's vector, the better of
two starts. **Share of the matrix peak**: operations on tokens (analytic) over time over the speed of a
2048-cubed product, measured in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import embed_tables
from embed_cells import (
    MODELS,
    QUALITY_SETS,
    SETS,
    Model,
    cosines,
    documents,
    make_model,
    matrix_peaks,
    ndcg_change,
    operations,
    queries,
    short_texts,
)
from embed_sides import REFERENCE, Process, Side, sides_for

CORES = 2
SAME = 0.9999
_VERSIONS: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        name: As the JSON has it.
        rounds: How often each side's turn comes.
        chunk: Documents of a turn.
        queries: In all.
        starts: Of each side's process.
        quality: Queries and documents of a quality set.
    """

    name: str
    rounds: int
    chunk: int
    queries: int
    starts: int
    quality: tuple[int, int]


SIZES = {
    size.name: size
    for size in (
        Size("tiny", rounds=1, chunk=4, queries=6, starts=1, quality=(10, 30)),
        Size("default", rounds=4, chunk=64, queries=500, starts=2, quality=(300, 100_000)),
        Size("full", rounds=10, chunk=128, queries=500, starts=3, quality=(300, 100_000)),
    )
}


def measure(
    name: str, model: Model, sides: Sequence[Side], size: Size, scratch: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """All sides of one model in turn: figures by side, and the matrix peaks meanwhile."""
    texts = {found: documents(found, size.rounds * size.chunk) for found in SETS}
    asked = queries(size.queries)
    task = {
        "source": str(model.source),
        "folder": str(model.folder),
        "dimension": model.dimension,
        "threads": CORES,
    }
    peaks: dict[str, float] = {}
    files = {side.name: scratch / f"{name}-{side.name}.npy" for side in sides}
    with ExitStack() as stack:
        processes, starts = _start_all(name, task, sides, size, scratch, stack)
        for process in processes:  # warm; not timed
            save = str(files[process.side.name])
            process.ask(do="documents", texts=texts[SETS[0]][: size.chunk], save=save)
        for turn in range(size.rounds):
            for kind, value in matrix_peaks(CORES, scratch).items():
                peaks[kind] = max(peaks.get(kind, 0.0), value)
            chunks = {key: found[turn * size.chunk : (turn + 1) * size.chunk] for key, found in texts.items()}
            share = -(-len(asked) // size.rounds)
            _take_turns(processes, chunks, asked[turn * share : (turn + 1) * share])
        figures = {
            process.side.name: _figures(process, texts, starts[process.side.name], process.ask(do="end"))
            for process in processes
        }
    for side, cosine in cosines(files, REFERENCE if REFERENCE in files else "fp32").items():
        figures[side]["cosine"] = cosine
    work = {found: operations(model, texts[found]) for found in SETS}
    for variant in ("fp32", "int8"):
        if variant in figures:
            figures[variant]["matrix_share"] = {
                found: work[found] / figures[variant]["seconds"][found] / peaks[variant] for found in SETS
            }
    return figures, peaks


def _start_all(
    name: str, task: Mapping[str, Any], sides: Sequence[Side], size: Size, scratch: Path, stack: ExitStack
) -> tuple[list[Process], dict[str, list[float]]]:
    """Every side's process, started as often as asked, the last one kept; and how long each start took."""
    starts: dict[str, list[float]] = {side.name: [] for side in sides}
    kept = []
    for number in range(size.starts):
        for side in sides:
            process = Process(side, task, scratch / f"{name}-{side.name}-{number}")
            if number < size.starts - 1:
                with process:
                    starts[side.name].append(process.hear()["load"])
                continue
            answer = stack.enter_context(process).hear()
            starts[side.name].append(answer["load"])
            _VERSIONS.setdefault(side.name, answer["versions"])
            kept.append(process)
            print(f"  {name}: {side.name} is ready", flush=True)
    return kept, starts


def _take_turns(
    processes: Sequence[Process], chunks: Mapping[str, Sequence[str]], asked: Sequence[str]
) -> None:
    for found, chunk in chunks.items():
        for process in processes:
            process.documents(found, chunk)
    for first in range(0, len(asked), 25):
        for process in processes:
            process.queries(asked[first : first + 25])


def _figures(
    process: Process, texts: Mapping[str, Sequence[str]], starts: Sequence[float], end: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "docs_per_s": {name: len(texts[name]) / process.document_seconds[name] for name in texts},
        "seconds": dict(process.document_seconds),
        "query_p50_ms": 1000 * statistics.median(process.query_seconds),
        "peak_memory_mb": end["peak"] / 2**20,
        "anonymous_mb": end["anonymous"] / 2**20,
        "load_s": min(starts),
    }


def different(figures: Mapping[str, Any], sides: Sequence[Side]) -> list[str]:
    """Sides that should give the float32 model's vectors and do not."""
    return [
        f"{side.name}: cosine {figures[side.name]['cosine']:.5f}, needed {SAME}"
        for side in sides
        if side.is_exact and figures[side.name]["cosine"] < SAME
    ]


def growth(model: Model, variant: str, counts: Sequence[int], scratch: Path) -> list[dict[str, float]]:
    """Documents/s and peak memory of our stream over more and more short texts."""
    side = Side(f"growth-{variant}", "ours", variant=variant)
    rows = []
    for count in counts:
        task = {"folder": str(model.folder), "threads": CORES, "source": ""}
        with Process(side, task, scratch / f"growth-{variant}-{count}") as process:
            process.hear()
            file = scratch / "texts.txt"
            file.write_text("\n".join(short_texts(count)), encoding="utf-8")
            answer = process.ask(do="stream", file=str(file))
            end = process.ask(do="end")
        row = {
            "texts": count,
            "docs_per_s": count / answer["seconds"],
            "peak_memory_mb": end["peak"] / 2**20,
            "anonymous_mb": end["anonymous"] / 2**20,
        }
        rows.append(row)
        print(
            f"  {count} texts: {row['docs_per_s']:.0f} documents/s, peak {row['peak_memory_mb']:.0f} MiB, "
            f"anonymous {row['anonymous_mb']:.0f} MiB",
            flush=True,
        )
    return rows


def run(arguments: argparse.Namespace, size: Size, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Measure what was asked for: the JSON's figures, and what is wrong with them."""
    results = embed_tables.empty(size.name)
    results |= {"sizes": asdict(size), "load_before": list(os.getloadavg()), "left_out": {}, "cells": {}}
    wrong: list[str] = []
    for name in arguments.models:
        print(f"{name}: exporting", flush=True)
        model = make_model(name, scratch)
        if arguments.growth:
            counts = (100, 1000) if size.name == "tiny" else (1000, 10_000, 100_000)
            results.setdefault("growth", {})[name] = growth(model, "int8", counts, scratch)
            continue
        sides, results["left_out"][name] = sides_for(name)
        figures, peaks = measure(name, model, sides, size, scratch)
        results["cells"][name] = {"sides": figures, "matrix_peaks": peaks}
        embed_tables.fill(results, name, figures, sides)
        wrong += [f"{name}, {problem}" for problem in different(figures, sides)]
        if name == "minilm":  # a random model ranks at random
            for found in QUALITY_SETS:
                for variant, change in ndcg_change(model, size.quality, found).items():
                    key = "ndcg_delta" if variant != "fp32" else "ndcg"
                    results[key].setdefault(name, {}).setdefault(variant, {})[found] = change
    results["versions"] = _VERSIONS
    return results, wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="default", help="how much (default: default)")
    parser.add_argument("--full", action="store_const", const="full", dest="size", help="as --size full")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: both")
    parser.add_argument("--growth", action="store_true", help="only ours, from 1k to 100k texts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):  # the processes that it starts inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if arguments.growth and list(MODELS) == arguments.models:
        arguments.models = ["minilm"]
    with tempfile.TemporaryDirectory(prefix="stm-embed-speed-") as scratch:
        results, wrong = run(arguments, SIZES[arguments.size], Path(scratch))
    print(embed_tables.markdown(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for problem in wrong:
        print(f"Not the same vectors: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
