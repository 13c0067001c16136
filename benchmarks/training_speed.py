"""How fast and how lean training is beside sentence-transformers, on the same rows, batch and LoRA.

    make bench-env
    .venv/bin/python benchmarks/training_speed.py --json training_speed.json           (at most 15 minutes)
    .venv/bin/python benchmarks/training_speed.py --full --json training_speed.json    (for RESULTS.md)

Rows of disease_ontology and medquad (published train, STM_DATA), batches of 48 pairs, LoRA of rank 16 on all
linear layers without dropout, texts cut at 256 tokens; all-MiniLM-L6-v2 and a random 4-layer Qwen3. Every
side trains in a process of its own with the same libraries, pinned to the same two cores, and they take
turns: some steps of one, some of the next, again and again, so that a busy machine is busy for all.

`sentence-transformers` is SentenceTransformerTrainer as it comes: float32, the plain loss and the cached one
(mini-batches of 32), on the very batches that we train on. `sentence-transformers-tuned` has bf16 and batches
grouped by length out of 64 batches' worth of rows, plain or cached (mini-batches of 16 and of 48). In each
cell the fastest of a peer's forms is what we are compared with, in time and in memory.

**rows/s**: a step's time is wall clock with tokenising and optimiser, without the first steps. Grouped
batches differ in length, so speed is taken in tokens (without padding) per second and divided by the mean
tokens of a row, the same for all sides. **Memory**: VmHWM at the end of training less VmRSS after the
imports; ours over the peer's. **Peak fraction**: operations of our step on tokens (analytic, see StepCost)
over its time over the speed of a 2048-cubed bf16 product, measured in turn with the steps. dev nDCG@10:
float32, on queries of the train that nobody trained on, ranked among a sample of documents.

With a CUDA device the same is measured there too, on a random model shaped like Qwen3-0.6B.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environments import python_of
from training_cells import QWEN3_06B, SETS, Rows, StepCost, models, read_rows, write_qwen3
from training_sides import OURS, PEER, SIDES, TUNED, Process

from stm_training.finetune.backbone import BackboneSpec, load_backbone

CORES = 2
RANK, ALPHA, SCALE, LEARNING_RATE, SEED = 16, 32, 20.0, 2e-4, 0


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        name: As the JSON has it.
        batch_size: Rows per step.
        warm: Steps that are not measured.
        rounds: How often each side's turn comes.
        steps: Steps of a turn.
        dev: Development queries and documents.
    """

    name: str
    batch_size: int
    warm: int
    rounds: int
    steps: int
    dev: tuple[int, int]

    @property
    def total(self) -> int:
        """Steps of a training."""
        return self.warm + self.rounds * self.steps


DEFAULT = Size("default", batch_size=48, warm=1, rounds=2, steps=1, dev=(60, 300))
FULL = Size("full", batch_size=48, warm=2, rounds=8, steps=4, dev=(200, 1500))


def measure(
    name: str, model: Path, rows: Rows, size: Size, scratch: Path, *, cuda: bool = False
) -> dict[str, Any]:
    """All sides of one cell in turn: figures by side, and the matrix units' speed meanwhile."""
    peaks: list[float] = []
    results: dict[str, dict[str, Any]] = {}
    environment = {} if cuda else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(CORES)}
    with ExitStack() as stack:
        processes = []
        for side in SIDES:
            task = {
                "side": "ours" if side.peer == OURS else "peer",
                "model": str(model),
                "rows": rows.rows,
                "batches": rows.grouped if side.peer == TUNED else rows.random,
                "batch_size": size.batch_size,
                "bf16": side.bf16,
                "mini_batch_size": side.mini_batch_size,
                "learning_rate": LEARNING_RATE,
                "warmup_steps": size.total // 10,
                "scale": SCALE,
                "rank": RANK,
                "alpha": ALPHA,
                "seed": SEED,
                "threads": os.cpu_count() if cuda else CORES,
                "dev": rows.dev,
            }
            folder = scratch / f"{name}-{side.name}".replace(" ", "-")
            task["folder"] = str(folder / "out")
            processes.append(stack.enter_context(Process(side, task, folder, environment)))
        for process in processes:
            process.hear("ready")
        for process in processes:
            process.run(size.warm)
        for _ in range(size.rounds):
            peaks.append(matrix_peak(cuda=cuda))
            for process in processes:
                process.run(size.steps)
        for process in processes:
            process.let(1)  # nothing is left to run: it ends
            results[process.side.name] = _figures(process, process.hear("trained"), rows, size)
            print(f"  {name}, {process.side.name}: {_line(results[process.side.name])}", flush=True)
    return {"sides": results, "matrix_peak": max(peaks)}


def matrix_peak(*, cuda: bool) -> float:
    """Operations per second of a large bf16 product, the best of some."""
    import torch

    size = 8192 if cuda else 2048
    left, right = (
        torch.randn(size, size, dtype=torch.bfloat16, device="cuda" if cuda else "cpu") for _ in "ab"
    )
    best = float("inf")
    for _ in range(10 if cuda else 4):
        started = time.perf_counter()
        left @ right
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _figures(process: Process, end: Mapping[str, Any], rows: Rows, size: Size) -> dict[str, Any]:
    batches = (rows.grouped if process.side.peer == TUNED else rows.random)[size.warm :]
    seconds = process.seconds[size.warm :]
    rate = sum(rows.tokens_of(batch) for batch in batches) / sum(seconds)
    return {
        "rows_per_s": rate / rows.tokens_per_row,
        "tokens_per_s": rate,
        "memory": end["peak"] - end["imports"],
        "memory_total": end["peak"],
        "step_seconds": seconds,
        "losses": end["losses"],
        "dev_ndcg@10": end["ndcg"],
    }


def _line(figures: Mapping[str, Any]) -> str:
    ndcg = figures["dev_ndcg@10"]
    losses = [figures["losses"][0], figures["losses"][-1]]
    return (
        f"{figures['rows_per_s']:.1f} rows/s, {figures['tokens_per_s']:.0f} tokens/s, "
        f"{figures['memory'] / 2**20:.0f} MiB, loss {losses[0]:.3f} to {losses[1]:.3f}"
        + ("" if ndcg is None else f", dev nDCG@10 {ndcg:.4f}")
    )


def ratios(cell: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By peer: our rows/s over those of its fastest form, and our memory over that form's."""
    sides = cell["sides"]
    found = {}
    for peer in (PEER, TUNED):
        forms = [sides[side.name] for side in SIDES if side.peer == peer]
        best = max(forms, key=lambda form: form["rows_per_s"])
        ours = sides["ours"]
        found[peer] = (ours["rows_per_s"] / best["rows_per_s"], ours["memory"] / best["memory"])
    return found


def peak_fraction(cell: Mapping[str, Any], cost: StepCost, rows: Rows, size: Size) -> float:
    """Share of the matrix units' measured speed that our steps put to use."""
    batches = rows.random[size.warm :]
    operations = sum(cost.of([n for row in batch for n in rows.tokens[row]]) for batch in batches)
    seconds: float = sum(cell["sides"]["ours"]["step_seconds"])
    return operations / seconds / float(cell["matrix_peak"])


def run(
    size: Size, folders: Mapping[str, Path], sets: Sequence[str], scratch: Path, *, cuda: bool
) -> dict[str, Any]:
    """All cells of some models: the JSON's figures."""
    tables: dict[str, dict[str, Any]] = {
        "rows_per_s_ratio": {}, "peak_memory_ratio": {}, "peak_fraction": {}, "cells": {},
    }  # fmt: skip
    for model, folder in folders.items():
        cost, backbone = StepCost(folder, RANK), load_backbone(BackboneSpec(str(folder)))
        for name in sets:
            rows = read_rows(
                name, backbone, batch_size=size.batch_size, steps=size.total, seed=SEED, dev=size.dev
            )
            cell = measure(f"{model}, {name}", folder, rows, size, scratch, cuda=cuda)
            for peer, (speed, memory) in ratios(cell).items():
                tables["rows_per_s_ratio"].setdefault(model, {}).setdefault(peer, {})[name] = speed
                tables["peak_memory_ratio"].setdefault(model, {}).setdefault(peer, {})[name] = memory
            share = peak_fraction(cell, cost, rows, size)
            tables["peak_fraction"].setdefault(model, {})[name] = share
            tables["cells"].setdefault(model, {})[name] = cell
            print(f"{model}, {name}: {_summary(tables, model, name, cell)}", flush=True)
    return tables


def _summary(tables: Mapping[str, Any], model: str, name: str, cell: Mapping[str, Any]) -> str:
    speed, memory = tables["rows_per_s_ratio"][model], tables["peak_memory_ratio"][model]
    parts = [
        f"{speed[peer][name]:.2f} x rows/s and {memory[peer][name]:.2f} x memory of {peer}" for peer in speed
    ]
    share = tables["peak_fraction"][model][name]
    return "; ".join([*parts, f"{share:.0%} of the measured {cell['matrix_peak'] / 1e9:.0f} GFLOP/s"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="more steps and queries")
    parser.add_argument("--models", nargs="+", default=["minilm", "qwen3-4l"], help="default: both")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args(argv)
    if not python_of("sentence-transformers").exists():
        print("The peer's environment is missing. Run: make bench-env", file=sys.stderr)
        return 2
    import torch

    size = FULL if arguments.full else DEFAULT
    with tempfile.TemporaryDirectory(prefix="stm-training-speed-") as scratch_name:
        scratch = Path(scratch_name)
        chosen = {name: path for name, path in models(scratch).items() if name in arguments.models}
        figures: dict[str, Any] = {"size": size.name, **asdict(size), "environment": environment()}
        everything = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(everything)[:CORES])  # the processes that it starts inherit it
        torch.set_num_threads(CORES)
        figures |= run(size, chosen, arguments.sets, scratch / "cpu", cuda=False)
        if torch.cuda.is_available():
            os.sched_setaffinity(0, everything)
            large = {"qwen3-0.6b": write_qwen3(scratch / "qwen3-0.6b", QWEN3_06B)}
            figures["gpu"] = run(size, large, arguments.sets, scratch / "gpu", cuda=True)
            figures["gpu"]["device"] = torch.cuda.get_device_name()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def environment() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    from importlib import metadata

    import torch

    from stm_training.finetune.precision import multiplies_bf16

    packages = ("stm-retriever", "torch", "transformers", "peft", "accelerate")
    return {
        "bfloat16_instructions": multiplies_bf16(torch.device("cpu")),
        "cores": CORES,
        "load_before": list(os.getloadavg()),
        "versions": {name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    raise SystemExit(main())
