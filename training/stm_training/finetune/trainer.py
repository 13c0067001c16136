"""Train one expert: transformers' outer loop, our batches and our contrastive step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, set_seed

from stm_retriever.errors import ConfigError, DataError, TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.anchor import AnchorLoss
from stm_training.finetune.arguments import fsdp_is_asked_for, training_arguments, without_accelerates_fsdp
from stm_training.finetune.averaging import check_averaging, save_average
from stm_training.finetune.backbone import Backbone, BackboneSpec
from stm_training.finetune.checkpoints import inputs_key, last_checkpoint, whole_checkpoints
from stm_training.finetune.collate import Collator
from stm_training.finetune.contrastive import ContrastiveTrainer
from stm_training.finetune.forward_pass import ForwardPass
from stm_training.finetune.gather import Ranks
from stm_training.finetune.guide import Guide
from stm_training.finetune.losses import check_learnable
from stm_training.finetune.memory_probe import PROBE, longest_ids, plan_memory
from stm_training.finetune.pair_keys import text_key
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.finetune.settings import TOKEN_BUDGET, TrainSettings
from stm_training.finetune.sharding import shard
from stm_training.finetune.step import Anchor, ContrastiveStep
from stm_training.finetune.trained_model import load_trainable, save_trained

if TYPE_CHECKING:
    from stm_training.finetune.watch import DevWatch, Score

Progress = Callable[[int, int, float], None]
"""Called after each step with the step, their total, and the step's loss."""

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """A trained expert.

    Attributes:
        adapter_dir: Folder of the adapter in PEFT's format; where all weights were trained, the same as
            ``model_dir``.
        losses: Loss of every step, those before a resume included.
        steps: Number of optimiser steps that were taken.
        seconds: Wall time of this call.
        best_step: The step whose weights were kept, by the development queries; 0: those before training.
            ``None``: nothing was scored, and the last ones were kept.
        history: A record of each step and of each scoring.
        token_budget: Padded tokens per micro-batch at the end.
        model_dir: Folder of the trained model; ``None`` for an adapter.
    """

    adapter_dir: Path
    losses: tuple[float, ...]
    steps: int
    seconds: float
    best_step: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    token_budget: int = TOKEN_BUDGET
    model_dir: Path | None = None


def train_expert(
    spec: BackboneSpec,
    pairs: Sequence[Pair],
    *,
    settings: TrainSettings,
    out_dir: Path,
    seed: int = 0,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    anchor_texts: Sequence[str] = (),
    score: Score | None = None,
    max_guard_loss: float | None = None,
    fsdp: bool | None = None,
) -> TrainResult:
    """Train an expert on pairs with a contrastive loss: a LoRA adapter, or all weights.

    With ``settings.save_steps``, a call that was killed continues from its last checkpoint when it is made
    again with the same arguments; a checkpoint of other arguments is discarded. The checkpoints go when the
    result is written, and stay after an error.

    Under ``torchrun`` or ``accelerate launch`` every process makes the same call: a batch is divided among
    them, its vectors are gathered, and the first process writes.

    Args:
        spec: The base model.
        pairs: Training rows; those of one document or query never meet in a batch.
        settings: Loss, schedule, adapter.
        out_dir: Gets ``adapter/`` (or ``model/``), ``memory_probe.json`` if memory was probed and,
            meanwhile, ``checkpoints/`` and ``best/``. Shared by all processes.
        seed: Seeds the adapter's start, the order of the rows, and dropout.
        progress: Called after each step, in the first process.
        callbacks: Of transformers' kind, called in every process.
        anchor_texts: General texts whose vectors shall stay, where ``settings.anchor_weight`` is above 0.
        score: Scores the model on development queries and guards, where ``settings.eval_steps`` is set; the
            best weights are then kept instead of the last.
        max_guard_loss: Weights that lose more on a guard are never the best, in nDCG@10 points (0-100).
        fsdp: Shard the weights over the processes; ``None``: if ``accelerate launch`` was told so.

    Returns:
        Where the result lies, and the losses.

    Raises:
        DataError: If a pair is unusable, for instance because its positive is also its negative.
        TrainingError: If the pairs fill no batch, the loss is not finite, or memory does not suffice.
        ConfigError: If settings contradict each other or the machine.
    """
    started = time.monotonic()
    check_pairs(pairs)
    check_learnable(settings, pairs)
    sampler = NoDuplicatesBatchSampler(
        pairs,
        batch_size=settings.batch_size,
        seed=seed,
        steps=settings.steps,
        epochs=settings.epochs,
        homogeneous=settings.homogeneous,
        source_temperature=settings.source_temperature,
    )
    sharded = fsdp_is_asked_for() if fsdp is None else fsdp
    with without_accelerates_fsdp():
        arguments = training_arguments(settings, out_dir / _CHECKPOINTS, steps=len(sampler), seed=seed)
        ranks = _ranks(settings, arguments.device, sharded=sharded)
        check_averaging(settings, len(sampler), ranks)
        backbone = load_trainable(spec, settings, seed=seed, device=arguments.device, ranks=ranks)
        key = inputs_key(spec, pairs, settings, seed, anchor_texts)
        collator, step = _step(backbone, pairs, settings, ranks, out_dir, seed, key, anchor_texts)
        if ranks.sharded:
            shard(backbone, arguments.device)
        watch = _watch(score, settings, max_guard_loss, out_dir)
        trainer = ContrastiveTrainer(
            backbone=backbone,
            step=step,
            pairs=pairs,
            sampler=sampler,
            collator=collator,
            arguments=arguments,
            ranks=ranks,
            callbacks=[*callbacks, *([] if watch is None else [watch])],
            progress=progress,
        )
        _train(trainer, out_dir / _CHECKPOINTS, key, ranks, seed)
    best_step = None if watch is None else watch.restore_best(backbone)
    folder = save_trained(backbone, spec, settings, out_dir, ranks)
    if ranks.rank == 0:
        if settings.average_checkpoints > 1:
            save_average(backbone, out_dir / _CHECKPOINTS, settings, folder)
        shutil.rmtree(out_dir / _CHECKPOINTS, ignore_errors=True)
    if watch is not None:
        watch.clear()
    return TrainResult(
        adapter_dir=folder,
        losses=trainer.losses,
        steps=len(trainer.losses),
        seconds=time.monotonic() - started,
        best_step=best_step,
        history=list(trainer.state.log_history),
        token_budget=step.plan.token_budget,
        model_dir=folder if settings.adapter == "full" else None,
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


def _ranks(settings: TrainSettings, device: torch.device, *, sharded: bool) -> Ranks:
    ranks = Ranks.of_this_process(device, sharded=sharded)
    if sharded and ranks.size == 1:
        message = (
            "FSDP is asked for, but this is the only process, so there is nobody to share the weights with. "
            "Start several with torchrun or accelerate launch, or leave FSDP off."
        )
        raise ConfigError(message)
    if sharded and settings.grad_cache == "off":
        message = (
            "grad_cache is 'off', but a sharded model cannot hold the graphs of several forward passes. Set "
            "grad_cache 'auto' or 'on', or leave FSDP off."
        )
        raise ConfigError(message)
    if settings.batch_size < ranks.size:
        message = (
            f"batch_size is {settings.batch_size}, but it is shared by {ranks.size} processes. Raise it to "
            f"{ranks.size} or more, or start fewer."
        )
        raise ConfigError(message)
    return ranks


def _step(
    backbone: Backbone,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    ranks: Ranks,
    out_dir: Path,
    seed: int,
    key: str,
    anchor_texts: Sequence[str],
) -> tuple[Collator, ContrastiveStep]:
    """The collator and the step, fitted to the memory."""
    collator = Collator(
        backbone,
        pairs,
        hard_negatives=settings.hard_negatives,
        token_budget=TOKEN_BUDGET,
        loss=settings.loss,
        ranks=ranks,
    )
    anchor = None
    if settings.anchor_weight > 0:
        loss = AnchorLoss(backbone, anchor_texts, seed=seed, precision=settings.precision)
        anchor = Anchor(loss, anchor_texts)
    guide = Guide(backbone, settings.precision) if settings.false_negatives == "guide" else None
    backbone.train()
    plan = plan_memory(
        settings,
        model=backbone,
        encode=ForwardPass(backbone, settings.precision),
        longest=lambda: longest_ids(collator, pairs),
        device=backbone.device,
        ranks=ranks,
        file=out_dir / PROBE,
        key=key,
    )
    collator.token_budget = plan.token_budget
    step = ContrastiveStep(
        backbone, settings, collator=collator, plan=plan, ranks=ranks, anchor=anchor, guide=guide
    )
    return collator, step


def _watch(
    score: Score | None, settings: TrainSettings, max_guard_loss: float | None, out_dir: Path
) -> DevWatch | None:
    if score is None or settings.eval_steps is None:
        return None
    from stm_training.finetune.watch import DevWatch

    return DevWatch(
        score,
        eval_steps=settings.eval_steps,
        patience=settings.patience,
        max_guard_loss=max_guard_loss,
        out_dir=out_dir,
    )


def _train(trainer: ContrastiveTrainer, checkpoints: Path, key: str, ranks: Ranks, seed: int) -> None:
    """Run the loop, from the last checkpoint of the same inputs if there is one.

    Raises:
        DataError, TrainingError: Those of a step; the message names the checkpoint that is kept.
    """
    if ranks.size > 1:
        set_seed(seed + ranks.rank)  # other dropout in each process
    with ranks.together("looking for checkpoints"):
        if ranks.rank == 0:
            last_checkpoint(checkpoints, key)  # removes those of other inputs
    resume_from = last_checkpoint(checkpoints, key)
    try:
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    except (TrainingError, DataError) as error:
        kept = whole_checkpoints(checkpoints)
        remedy = f" The last checkpoint is kept: {kept[-1]}." if kept else ""
        raise type(error)(f"{error}{remedy}") from error
