"""Trains sentence-transformers as its users do, in its own environment: mine, train, save, say what was done.

Run by ``benchmarks/quality_sentence_transformers.py`` with the path of a task; speaks JSON lines.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers
from sentence_transformers.util import mine_hard_negatives
from transformers import TrainerCallback

OUT, EVERY = sys.stdout, 20


def say(note: str, **message: Any) -> None:
    """Send a line; what libraries print goes to standard error."""
    print(json.dumps({"note": note, **message}), file=OUT, flush=True)


def read(path: Path) -> list[Any]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Saves the model after given steps, keeps the losses and says how far it is."""

    def __init__(self, model: SentenceTransformer, task: dict[str, Any]) -> None:
        self.losses: list[float] = []
        self._model, self._folder, self._steps = model, Path(task["folder"]), task["steps"]
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save where it is due."""
        step = state.global_step
        if step in self._steps:
            self._model.save_pretrained(str(self._folder / f"step-{step}"), create_model_card=False)
        if step % EVERY == 0:
            say(f"step {step} of {self._steps[-1]}, {time.monotonic() - self._began:.0f} s")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def mined(task: dict[str, Any], model: SentenceTransformer) -> Dataset:
    """Triplets of the task's pairs; a pair for which nothing passes the rules is left out, as it does."""
    rows = read(Path(task["data"]) / "pairs.jsonl")
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["positive"] for row in rows]}
    return mine_hard_negatives(
        Dataset.from_dict(columns),
        model,
        num_negatives=1,
        relative_margin=task["relative_margin"],
        range_max=task["max_rank"],
        sampling_strategy="top",
        batch_size=task["batch_size"],
        output_format="triplet",
    )


def main(path: str) -> None:
    """Do the task of a file."""
    sys.stdout = sys.stderr
    task = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(task["seed"])
    model = SentenceTransformer(task["model"])
    model.max_seq_length = task["max_length"]
    began = time.monotonic()
    rows = mined(task, model)
    mining = time.monotonic() - began
    say(f"{len(rows)} triplets mined in {mining:.0f} s")
    keeper = Keeper(model, task)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=task["data"],
            max_steps=task["steps"][-1],
            per_device_train_batch_size=task["batch_size"],
            learning_rate=task["learning_rate"],
            warmup_steps=task["warmup_steps"],
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            bf16=task["bf16"],
            seed=task["seed"],
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[keeper],
    )
    began = time.monotonic()
    trainer.train()
    training = time.monotonic() - began
    # Read anew: accelerate leaves its bf16 context around the trained one's forward pass.
    last = SentenceTransformer(str(Path(task["folder"]) / f"step-{task['steps'][-1]}"))
    vectors = last.encode(read(Path(task["data"]) / "texts.jsonl"), normalize_embeddings=True)
    np.save(Path(task["data"]) / "vectors.npy", np.asarray(vectors, np.float32))
    say(
        f"trained in {training:.0f} s",
        losses=[round(loss, 4) for loss in keeper.losses],
        triplets=len(rows),
        mining_seconds=round(mining, 1),
        training_seconds=round(training, 1),
    )


if __name__ == "__main__":
    main(sys.argv[1])
