"""How fast and how lean merging is beside mergekit 0.1.5, and a search beside the naive loop.

    make bench-env
    .venv/bin/python benchmarks/merge_speed.py --json merge_speed.json           (0.1B parameters, minutes)
    .venv/bin/python benchmarks/merge_speed.py --full --json merge_speed.json    (0.6B, 8 GB of disk)

**Merging**: four random Qwen3-shaped models in bf16 on disk: a base and three that were moved away from it
a little. Each merge runs in a process of its own, ours and mergekit's in turn; the medians are compared.
Linear averages all four; TIES and DARE-TIES merge three into the base (density 0.5). Time is that of the
merge from folders to a folder, without either side's imports and with our hashing and flushing to disk.
Memory is the peak of the whole process's anonymous pages (RssAnon in /proc/PID/status, sampled every 10 ms),
imports included: pages of mapped files, which the kernel can drop, count for neither side. mergekit runs
with --peer-dtype bfloat16, its leaner and faster form, without tokenizer and model card; ours computes in
float32.

**A search's trials per minute**: merges of two adapters on all-MiniLM-L6-v2, which are trained for 15 steps
first. Ours is the search with its defaults: weights change in place, texts are tokenised once, bf16 where the
CPU has it, hopeless trials are ended early. The naive loop writes each of the same merges to a folder, loads
it with sentence-transformers, encodes and scores. Same queries and documents, trial by trial in turn.

Models lie in a temporary folder (--scratch says where) that is removed at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from environments import python_of  # this folder is on the path
from merge_sides import OURS, PEER, SIZES, anonymous_bytes, shapes, write_models

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("linear", "ties", "dare_ties")
_INTERVAL = 0.01  # seconds
_SIDES = Path(__file__).with_name("merge_sides.py")
_PACKAGES = ("stm-retriever", "mergekit", "torch", "safetensors", "transformers", "sentence-transformers")


def measure_one(side: str, method: str, folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Run one merge in a process and watch its memory."""
    shutil.rmtree(out, ignore_errors=True)
    report = out.with_suffix(".json")
    python = sys.executable if side == OURS else str(python_of(PEER))
    log = out.with_suffix(".log")
    command = [python, str(_SIDES), side, method, str(folder), str(out), str(report), dtype]
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(str(process.pid)))
            time.sleep(_INTERVAL)
        whole = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"{side} {method} failed:\n{log.read_text('utf-8', 'replace')[-3000:]}")
    measured: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return measured | {"whole_seconds": whole, "peak": peak}


def difference(one: Path, other: Path) -> float:
    """Mean difference of two merged models, over the mean magnitude of a weight."""
    from safetensors import safe_open

    files = [list(path.glob("*.safetensors")) for path in (one, other)]
    if any(len(found) != 1 for found in files):
        raise SystemExit(f"expected one file of weights in {one} and {other}, found {files}")
    change = size = 0.0
    with safe_open(files[0][0], "pt") as left, safe_open(files[1][0], "pt") as right:
        for name in left.keys():
            mine, theirs = left.get_tensor(name).float(), right.get_tensor(name).float()
            change += float((mine - theirs).abs().sum())
            size += float(mine.abs().sum())
    return change / size


def measure_merging(folder: Path, rounds: int, dtype: str) -> dict[str, Any]:
    """All methods, both sides in turn; ``dtype`` is what mergekit computes in."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    differences = {}
    for method in METHODS:
        runs[method] = {OURS: [], PEER: []}
        for round_ in range(rounds):
            for side, found in runs[method].items():
                found.append(measure_one(side, method, folder, folder / f"out-{side}", dtype))
                print(
                    f"{method} round {round_ + 1} {side}: {found[-1]['seconds']:.2f} s, "
                    f"{found[-1]['peak'] / 1e6:.0f} MB",
                    flush=True,
                )
        if method != "dare_ties":  # which draws its own numbers
            differences[method] = difference(folder / f"out-{OURS}", folder / f"out-{PEER}")
    medians = {
        method: {
            side: {
                key: statistics.median(item[key] for item in found)
                for key in ("seconds", "whole_seconds", "peak", "after_imports")
            }
            for side, found in sides.items()
        }
        for method, sides in runs.items()
    }

    def ratio(method: str, key: str) -> float:
        return float(medians[method][OURS][key] / medians[method][PEER][key])

    return {
        "time_ratio": {method: ratio(method, "seconds") for method in METHODS},
        "memory_ratio": {method: ratio(method, "peak") for method in METHODS},
        "whole_process_time_ratio": {method: ratio(method, "whole_seconds") for method in METHODS},
        "medians": medians,
        "runs": runs,
        "mean_difference_over_mean_weight": differences,
        "memory_measure": "peak of RssAnon (/proc/PID/status) of the whole process, imports included",
    }


def measure_trials(base: Path, collection: Path, split: str, folder: Path, trials: int) -> dict[str, Any]:
    """Trials per minute of a search, and of the naive loop over the same merges, in turn.

    The members are two adapters that are trained for some steps first, so that merges differ as they do in
    use: pruning ends a search's hopeless trials early, which the naive loop knows nothing of.
    """
    from stm_training.data.reading import read_beir
    from stm_training.finetune.backbone import BackboneSpec, load_backbone
    from stm_training.finetune.lora import full_deltas
    from stm_training.merge.recipe import MergeRecipe
    from stm_training.merge.search.evaluator import evaluator_for
    from stm_training.merge.search.job import SearchJob
    from stm_training.merge.search.records import Trial
    from stm_training.merge.search.settings import SearchSection
    from stm_training.merge.search.study import search
    from stm_training.merge.stream.stream import merge_folders
    from stm_training.pipeline.collections import Problem
    from stm_training.pipeline.scoring import score_vectors

    found = read_beir(collection, split, allow_title_only=True)
    queries = {name: found.queries[name] for name in found.qrels}
    problem = Problem(found.name, list(found.corpus.values()), queries, found.qrels)
    backbone = load_backbone(BackboneSpec(str(base)))
    adapters = train_adapters(base, problem.passages, folder)
    naive_seconds: list[float] = []
    differences: list[float] = []

    def naive(recipe: MergeRecipe) -> float:
        from sentence_transformers import SentenceTransformer

        out = folder / "trial"
        merge_folders(base, {name: adapters[name] for name in recipe.weights}, recipe, out, overwrite=True)
        model = SentenceTransformer(str(out), device="cpu", local_files_only=True)
        model.max_seq_length = backbone.max_length
        texts = [passage.content for passage in problem.passages]
        documents = model.encode(texts, normalize_embeddings=True)
        return _mean(
            score_vectors(model.encode(list(queries.values()), normalize_embeddings=True), documents, problem)
        )

    def also_naive(trial: Trial, total: int) -> None:
        started = time.perf_counter()
        score = naive(trial.recipe)
        naive_seconds.append(time.perf_counter() - started)
        if trial.domain is not None:
            differences.append(abs(score - trial.domain))

    naive(MergeRecipe(method="task_arithmetic", weights=dict.fromkeys(adapters, 0.5)))  # warms up
    settings = SearchSection(sampler="random", trials=trials, methods=("task_arithmetic",))
    job = SearchJob(settings, tuple(adapters), folder / "search", "benchmark")
    deltas = {name: full_deltas(path, backbone) for name, path in adapters.items()}
    with evaluator_for(backbone, deltas, [problem], prune_share=settings.prune_share) as evaluate:
        started = time.perf_counter()
        result = search(job, evaluate, progress=also_naive)
        search_seconds = time.perf_counter() - started - sum(naive_seconds) - result.base.seconds
    own = [trial.seconds for trial in result.trials]
    whole = [trial.seconds for trial in result.trials if not trial.pruned]
    per_minute = {OURS: 60 * len(own) / search_seconds, "naive": 60 * len(naive_seconds) / sum(naive_seconds)}
    return {
        "trials_per_minute": per_minute,
        "trials_per_minute_ratio": per_minute[OURS] / per_minute["naive"],
        "trials": {
            "collection": found.name,
            "documents": len(problem.passages),
            "queries": len(queries),
            "ended_early": result.pruned,
            "seconds": {OURS: own, "naive": naive_seconds},
            "ratio_of_whole_trials": statistics.median(naive_seconds) / statistics.median(whole),
            "largest_ndcg_difference": max(differences),
        },
    }


def train_adapters(base: Path, passages: Sequence[Any], folder: Path) -> dict[str, Path]:
    """Two experts of the collection's own texts: titles find their passages, first halves the second ones."""
    from stm_training.data.records import Pair
    from stm_training.finetune.backbone import BackboneSpec
    from stm_training.finetune.settings import TrainSettings
    from stm_training.finetune.trainer import train_expert

    def halves(text: str) -> tuple[str, str]:
        words = text.split()
        return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])

    pairs = {
        "titles": [Pair(one.title, one.text, positive_id=one.id) for one in passages if one.title],
        "halves": [Pair(*halves(one.text), positive_id=one.id) for one in passages],
    }
    settings = TrainSettings(steps=15, batch_size=16, learning_rate=3e-4, warmup_steps=2)
    spec = BackboneSpec(str(base), max_length=128)
    return {
        name: train_expert(spec, rows, settings=settings, out_dir=folder / f"expert-{name}").adapter_dir
        for name, rows in pairs.items()
    }


def _mean(metrics: dict[str, dict[str, float]]) -> float:
    return statistics.fmean(metrics["ndcg@10"].values())


def environment() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    code = (
        "import json; from importlib import metadata\n"
        "found = {d.metadata['Name'].lower(): d.version for d in metadata.distributions()}\n"
        f"print(json.dumps({{name: found[name] for name in {_PACKAGES!r} if name in found}}))"
    )
    peer = subprocess.run([str(python_of(PEER)), "-c", code], check=True, capture_output=True, text=True)
    installed = {item.metadata["Name"].lower(): item.version for item in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {
            OURS: {name: installed[name] for name in _PACKAGES if name in installed},
            PEER: json.loads(peer.stdout),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = _parser().parse_args(argv)
    missing = _missing(arguments)
    if missing:
        print(missing, file=sys.stderr)
        return 2
    name = "0.6B" if arguments.full else arguments.size
    figures: dict[str, Any] = {
        "size": name,
        "shape": asdict(SIZES[name]),
        "peer_dtype": arguments.peer_dtype,
        "environment": environment(),
    }
    with tempfile.TemporaryDirectory(prefix="merge-speed-", dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        if "merging" in arguments.parts:
            print("writing four models ...", flush=True)
            figures["parameters"] = write_models(SIZES[name], folder)
            figures |= measure_merging(folder, arguments.rounds, arguments.peer_dtype)
        if "trials" in arguments.parts:
            from stm_training.demo.base_model import find_base

            figures |= measure_trials(
                find_base(arguments.base), arguments.collection, arguments.split, folder, arguments.trials
            )
    _print(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    handbook = ROOT / "training" / "stm_training" / "demo" / "handbook"
    parser.add_argument("--size", choices=list(SIZES), default="0.1B", help="of the models (default: 0.1B)")
    parser.add_argument("--full", action="store_true", help="the size of Qwen3-0.6B")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side per method (default: 3)")
    parser.add_argument(
        "--peer-dtype", choices=("bfloat16", "float32"), default="bfloat16", help="mergekit computes in it"
    )
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the models are written")
    parser.add_argument("--base", metavar="FOLDER", help="all-MiniLM-L6-v2, where it is not installed")
    parser.add_argument(
        "--collection",
        type=Path,
        default=handbook,
        metavar="FOLDER",
        help="BEIR folder of the trials (default: the demo's handbook)",
    )
    parser.add_argument("--split", default="dev", help="its split (default: dev)")
    parser.add_argument("--trials", type=int, default=12, help="trials of each side (default: 12)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("merging", "trials"),
        default=("merging", "trials"),
        help="what to measure",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def _missing(arguments: argparse.Namespace) -> str | None:
    """What keeps the benchmark from running."""
    if not python_of(PEER).exists():
        return "mergekit's environment is not there. Run: python benchmarks/environments.py mergekit"
    if not Path("/proc/self/status").exists():
        return "Memory is read from /proc, which only Linux has."
    if "trials" in arguments.parts and importlib.util.find_spec("sentence_transformers") is None:
        return (
            "sentence-transformers is not installed here, and the naive loop needs it (or: --parts merging)."
        )
    size = SIZES["0.6B" if arguments.full else arguments.size]
    count = sum(math.prod(shape) for shape in shapes(size).values())
    needed = 2 * count * 6 + 10**9  # four models and two results
    free = shutil.disk_usage(arguments.scratch or tempfile.gettempdir()).free
    if free < needed:
        return f"{needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} GB are free."
    return None


def _print(figures: dict[str, Any]) -> None:
    if "medians" in figures:
        print(f"\n{figures['size']}: four models of {figures['parameters'] / 1e6:.1f} M parameters in bf16")
        for method, sides in figures["medians"].items():
            for side, values in sides.items():
                print(
                    f"  {method:<10} {side:<14} {values['seconds']:7.2f} s "
                    f"({values['whole_seconds']:.2f} s with imports), peak {values['peak'] / 1e6:.0f} MB "
                    f"({values['after_imports'] / 1e6:.0f} MB after imports)"
                )
            print(
                f"  {method:<10} {figures['time_ratio'][method]:.2f} of its time, "
                f"{figures['memory_ratio'][method]:.2f} of its memory"
            )
        print(f"  memory: {figures['memory_measure']}")
        print(f"  mean difference / mean weight: {figures['mean_difference_over_mean_weight']}")
    if "trials_per_minute" in figures:
        for side, count in figures["trials_per_minute"].items():
            print(f"  trials, {side:<14} {count:8.1f} per minute")
        trials = figures["trials"]
        print(
            f"  {figures['trials_per_minute_ratio']:.1f} times as many trials on {trials['documents']} "
            f"documents ({trials['ended_early']} of {len(trials['seconds'][OURS])} ended early; whole ones "
            f"{trials['ratio_of_whole_trials']:.1f} times as fast); nDCG@10 differs by at most "
            f"{trials['largest_ndcg_difference']:.4f}"
        )
    for side, versions in figures["environment"]["versions"].items():
        print(f"  {side}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))


if __name__ == "__main__":
    raise SystemExit(main())
