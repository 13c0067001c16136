"""The peer sentence-transformers in quality.py: trained in its own environment, scored by our code."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import experts
import merging
import numpy as np
import torch
from environments import is_made, python_of
from merging import all_data_settings
from quality_systems import (
    SEED,
    Bench,
    Vectors,
    choose,
    ndcg_by_query,
    spec_of,
    test_scores,
    training_sample,
    trial_figures,
)

from stm_training.finetune.backbone import load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.precision import multiplies_bf16

PEER = "sentence-transformers"
LEARNING_RATE = 2e-5  # usual for it where every weight is trained
WARMUP_SHARE = 0.1
BATCH_SIZE = 32
RELATIVE_MARGIN = 0.05  # a negative scores below 95 % of its positive
MAX_RANK = 100
SAME_VECTOR = 0.999  # cosine of our vector and the peer's own, in fp32
COMPARED = 32  # texts
_WORKER = Path(__file__).resolve().parent / "quality_peers" / "worker.py"


class PeerFailed(SystemExit):
    """The peer's process ended early, or its vectors are not what we read from its checkpoint."""


def checkpoint_steps(total: int, trials: int) -> list[int]:
    """Steps after which the model is kept: evenly spaced, the last one included."""
    return sorted({max(1, round(total * number / trials)) for number in range(1, trials + 1)})


def schedule() -> dict[str, Any]:
    """What decides the training, without its texts."""
    total = all_data_settings().steps or 0
    return {
        "steps": checkpoint_steps(total, merging.TRIALS),
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": round(WARMUP_SHARE * total),
        "relative_margin": RELATIVE_MARGIN,
        "max_rank": MAX_RANK,
        "max_length": experts.MAX_LENGTH,
        "seed": SEED,
    }


def sentence_transformers(bench: Bench) -> dict[str, Any]:
    """MNRL and its own mined negatives, every weight trained; the best of its checkpoints."""

    def work() -> dict[str, Any]:
        folder, record = trained(bench)
        vectors = bench.encode(load_backbone(spec_of(folder)), bench.tests)
        return test_scores(bench, vectors) | record

    return bench.cell(PEER, schedule(), work)


def trained(bench: Bench) -> tuple[Path, dict[str, Any]]:
    """The chosen checkpoint and its record; trained and chosen where an earlier run left none."""
    folder = bench.work / bench.named(PEER, schedule())
    record = folder / "record.json"
    if record.is_file():
        return folder / "best", json.loads(record.read_text(encoding="utf-8"))
    if not is_made(PEER):
        raise SystemExit(f"{PEER} has no environment: python benchmarks/environments.py {PEER}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkpoints, notes = train(bench, folder)
    trials = {}
    for step, checkpoint in checkpoints.items():
        vectors = bench.encode(load_backbone(spec_of(checkpoint)), bench.dev)
        trials[step] = bench.trial(
            lambda problem, found=vectors: ndcg_by_query(problem, *found[problem.name])
        )
        print(f"{PEER}: step {step}: objective {bench.objective(trials[step]):.4f}", flush=True)
    best = choose(trials, bench.objective)
    for step, checkpoint in checkpoints.items():
        if step == best:
            checkpoint.rename(folder / "best")
        else:
            shutil.rmtree(checkpoint)
    found = {"best_step": best, "trials": trial_figures(trials, bench.objective), "peer": notes}
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(record)
    return folder / "best", found


def train(bench: Bench, folder: Path) -> tuple[dict[int, Path], dict[str, Any]]:
    """Hand the pairs over, let the peer mine and train, and see that we read its checkpoints as it does.

    Returns:
        Checkpoints by step, and what the peer says of its run.

    Raises:
        PeerFailed: If it ends early, or the vectors differ.
    """
    settings = all_data_settings().model_copy(update={"batch_size": BATCH_SIZE})
    pairs = training_sample(bench.members.every_pair(), settings)
    texts = [pair.positive for pair in pairs[:COMPARED]]
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        rows = [json.dumps({"query": pair.query, "positive": pair.positive}) for pair in pairs]
        (data / "pairs.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (data / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)) + "\n", encoding="utf-8")
        task = {
            **schedule(),
            "model": experts.spec().source,
            "bf16": multiplies_bf16(torch.device("cpu")),
            "data": str(data),
            "folder": str(folder),
        }
        (data / "task.json").write_text(json.dumps(task), encoding="utf-8")
        notes = listen(data)
        checkpoints = {step: folder / f"step-{step}" for step in task["steps"]}
        last = checkpoints[max(checkpoints)]
        own = encode_texts(load_backbone(spec_of(last)), texts, "document", precision="fp32")
        lowest = agreement(own, np.load(data / "vectors.npy", allow_pickle=False))
    print(f"{PEER}: our reading of its vectors has a cosine of at least {lowest:.6f} to its own", flush=True)
    return checkpoints, notes | {"lowest_cosine": lowest, "bf16": task["bf16"]}


def agreement(own: Vectors, theirs: Vectors) -> float:
    """Lowest cosine of vectors (n, d) of the same texts.

    Raises:
        PeerFailed: If it is so low that we would score another model than the peer trained.
    """
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(theirs, axis=1)
    lowest = float(((own * theirs).sum(axis=1) / norms).min())
    if not lowest >= SAME_VECTOR:
        raise PeerFailed(f"our vectors of {PEER}'s checkpoint have a cosine of {lowest:.4f} to its own")
    return lowest


def listen(data: Path) -> dict[str, Any]:
    """Run the worker on a task and show its progress; what it says last."""
    last: dict[str, Any] = {}
    with (data / "errors.txt").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [str(python_of(PEER)), str(_WORKER), str(data / "task.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for line in process.stdout or ():
            last = json.loads(line)
            print(f"{PEER}: {last['note']}", flush=True)
        code = process.wait()
    if code or "losses" not in last:
        tail = (data / "errors.txt").read_text(encoding="utf-8")[-3000:]
        raise PeerFailed(f"{PEER} ended with {code}:\n{tail}")
    return last
