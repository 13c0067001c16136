"""The peer's side: SentenceTransformerTrainer with its (cached) multiple-negatives ranking loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gate import Gate
from numpy.typing import NDArray
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class GivenBatches(DefaultBatchSampler):  # type: ignore[misc]
    """Batches that are given, in their order."""

    batches: Sequence[Sequence[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (list(rows) for rows in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Losses(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.found.append(float(logs["loss"]))


def train(task: dict[str, Any], gate: Gate) -> tuple[list[float], Callable[[], Encode]]:
    """Train, and return the losses and a function that gives the trained model."""
    torch.manual_seed(task["seed"])
    model = SentenceTransformer(task["model"])
    model.add_adapter(
        LoraConfig(
            r=task["rank"],
            lora_alpha=task["alpha"],
            lora_dropout=0.0,
            target_modules=linear_layers(model),
            task_type="FEATURE_EXTRACTION",
        )
    )
    cached = task["mini_batch_size"]
    loss = (
        MultipleNegativesRankingLoss(model, scale=task["scale"])
        if cached is None
        else CachedMultipleNegativesRankingLoss(model, scale=task["scale"], mini_batch_size=cached)
    )
    losses = _Losses()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=task["folder"],
            max_steps=len(task["batches"]),
            per_device_train_batch_size=task["batch_size"],
            learning_rate=task["learning_rate"],
            warmup_steps=task["warmup_steps"],
            batch_sampler=type("Given", (GivenBatches,), {"batches": task["batches"]}),
            bf16=task["bf16"],
            seed=task["seed"],
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_dict(
            {"anchor": [row[0] for row in task["rows"]], "positive": [row[1] for row in task["rows"]]}
        ),
        loss=loss,
        callbacks=[losses, gate],
    )
    trainer.train()

    def load() -> Encode:
        model.eval()
        return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True), np.float32)

    return losses.found, load


def linear_layers(model: SentenceTransformer) -> list[str]:
    """Names of all linear layers but a pooler head's, which is on the way to no vector."""
    names = [name for name, module in model[0].auto_model.named_modules() if type(module) is torch.nn.Linear]
    return [name for name in names if not name.startswith("pooler")]
