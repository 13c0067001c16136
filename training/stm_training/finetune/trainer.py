"""Train one expert: transformers' outer loop, our batches and our contrastive step."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import set_seed

from stm_retriever.errors import DataError, TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.collate import Collator
from stm_training.finetune.contrastive import ContrastiveTrainer, training_arguments
from stm_training.finetune.lora import attach_lora, save_adapter
from stm_training.finetune.pair_keys import text_key
from stm_training.finetune.precision import multiplies_bf16
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.finetune.settings import TrainSettings

Progress = Callable[[int, int, float], None]
"""Called after each step with the step, their total, and the step's loss."""


@dataclass(frozen=True)
class TrainResult:
    """A trained expert.

    Attributes:
        adapter_dir: Folder of the adapter in PEFT's format.
        losses: Loss of every step, those before a resume included.
        steps: Number of optimiser steps.
        seconds: Wall time of this call.
    """

    adapter_dir: Path
    losses: tuple[float, ...]
    steps: int
    seconds: float


def train_expert(
    spec: BackboneSpec,
    pairs: Sequence[Pair],
    *,
    settings: TrainSettings,
    out_dir: Path,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a LoRA adapter on pairs with a contrastive loss.

    With ``settings.save_steps``, a call that was killed continues from its last checkpoint when it is made
    again with the same arguments; a checkpoint of other arguments is discarded. The checkpoints go when the
    adapter is written, and stay after an error.

    Args:
        spec: The base model.
        pairs: Training rows; those of one document or query never meet in a batch.
        settings: Loss, schedule, adapter.
        out_dir: Gets ``adapter/`` and, meanwhile, ``checkpoints/``.
        seed: Seeds the adapter's start, the order of the rows, and dropout.
        progress: Called after each step.

    Returns:
        Where the adapter lies, and the losses.

    Raises:
        DataError: If a pair is unusable, for instance because its positive is also its negative.
        TrainingError: If the pairs fill no batch, or the loss is not finite.
    """
    started = time.monotonic()
    check_pairs(pairs)
    sampler = NoDuplicatesBatchSampler(
        pairs, batch_size=settings.batch_size, seed=seed, steps=settings.max_steps, epochs=settings.epochs
    )
    backbone = load_backbone(spec)
    if torch.cuda.is_available():
        backbone.to("cuda")
    set_seed(seed)
    attach_lora(backbone, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout)
    if settings.precision != "fp32" and multiplies_bf16(backbone.device):
        store_frozen_weights_in_bf16(backbone)
    checkpoints = out_dir / "checkpoints"
    resume_from = _last_checkpoint(checkpoints, _inputs_key(spec, pairs, settings, seed))
    trainer = ContrastiveTrainer(
        backbone=backbone,
        settings=settings,
        pairs=pairs,
        sampler=sampler,
        collator=Collator(
            backbone, pairs, hard_negatives=settings.hard_negatives, token_budget=settings.token_budget
        ),
        arguments=training_arguments(settings, checkpoints, steps=len(sampler), seed=seed),
        progress=progress,
    )
    try:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    except TrainingError as error:
        kept = _whole_checkpoints(checkpoints)
        remedy = f" The last checkpoint is kept: {kept[-1]}." if kept else ""
        raise TrainingError(f"{error}{remedy}") from error
    save_adapter(backbone, out_dir / "adapter")
    shutil.rmtree(checkpoints, ignore_errors=True)
    return TrainResult(
        adapter_dir=out_dir / "adapter",
        losses=trainer.losses,
        steps=len(sampler),
        seconds=time.monotonic() - started,
    )


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Refuse rows that would teach nonsense.

    Raises:
        DataError: If a query or text is empty, or a pair's positive is one of its own negatives.
    """
    for number, pair in enumerate(pairs, start=1):
        where = f"Training pair {number} (query {pair.query[:60]!r}, id {pair.query_id or 'none'})"
        if not all(text.strip() for text in (pair.query, pair.positive, *pair.negatives)):
            message = f"{where} has an empty query, positive or negative. Remove the row."
            raise DataError(message)
        if text_key(pair.positive) in {text_key(text) for text in pair.negatives}:
            message = (
                f"{where} has its positive among its negatives: {pair.positive[:60]!r}. It would be pulled "
                f"and pushed at once. Remove that negative."
            )
            raise DataError(message)


def store_frozen_weights_in_bf16(backbone: Backbone) -> None:
    """Cast the frozen linear layers once, instead of at every forward pass under autocast.

    The products are the same: autocast would round these very weights. Norms and embeddings stay float32.
    """
    for module in backbone.model.modules():
        if isinstance(module, nn.Linear) and not any(
            p.requires_grad for p in module.parameters(recurse=False)
        ):
            module.to(torch.bfloat16)


def _inputs_key(spec: BackboneSpec, pairs: Sequence[Pair], settings: TrainSettings, seed: int) -> str:
    digest = hashlib.sha256()
    head = {**asdict(spec), "prompts": spec.prompts and spec.prompts.model_dump()}
    digest.update(json.dumps([head, settings.model_dump(), seed], sort_keys=True).encode())
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _last_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of the same inputs; checkpoints of other inputs are removed."""
    note = folder / "inputs.json"
    if note.is_file() and note.read_text(encoding="utf-8") == json.dumps(key):
        return next(reversed(_whole_checkpoints(folder)), None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    note.write_text(json.dumps(key), encoding="utf-8")
    return None


def _whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the order of their steps, without those that were being written at a kill."""
    found = [path for path in folder.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_json(path: Path) -> bool:
    # trainer_state.json is the last file of a checkpoint to be written.
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
