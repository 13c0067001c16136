"""Our settings as transformers' TrainingArguments."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainingArguments

from stm_training.finetune.settings import TrainSettings

_FSDP = "ACCELERATE_USE_FSDP"


def training_arguments(
    settings: TrainSettings, checkpoints: Path, *, steps: int, seed: int
) -> TrainingArguments:
    """Translate our settings; anything not named is transformers' default.

    Where a launcher (torchrun, accelerate launch) started several processes, this joins them: by NCCL on
    GPUs, by gloo on CPUs.
    """
    cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(settings.warmup_steps, steps // 10),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        save_strategy="no" if settings.save_steps is None else "steps",
        save_steps=settings.save_steps or 1,
        save_total_limit=max(2, settings.average_checkpoints),
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        seed=seed,
    )
    if arguments.world_size > 1 and distributed.get_backend() == "gloo":
        atexit.unregister(_leave)
        atexit.register(_leave)
    return arguments


def _leave() -> None:
    # gloo's threads must be joined before the interpreter is taken down, or it may abort.
    if distributed.is_initialized():
        distributed.destroy_process_group()


def fsdp_is_asked_for() -> bool:
    """Whether ``accelerate launch`` was told to shard the model."""
    return os.environ.get(_FSDP, "false").lower() in ("true", "1", "yes")


@contextmanager
def without_accelerates_fsdp() -> Iterator[None]:
    """Hide the launcher's wish from accelerate: the model is sharded by us (see ``sharding``)."""
    asked = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked
