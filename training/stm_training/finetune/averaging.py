"""The mean of a training's last checkpoints, smoother than the last one (Izmailov 2018, arXiv 1803.05407)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stm_retriever.errors import ConfigError, TrainingError
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.checkpoints import WEIGHTS, whole_checkpoints
from stm_training.finetune.full_weights import save_model
from stm_training.finetune.gather import Ranks
from stm_training.finetune.lora import load_adapter_state, save_adapter
from stm_training.finetune.settings import TrainSettings

_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def check_averaging(settings: TrainSettings, steps: int, ranks: Ranks) -> None:
    """Refuse an average that could not be made, before anything is trained.

    Args:
        settings: ``average_checkpoints`` and what it depends on.
        steps: Optimiser steps of the training.
        ranks: The processes of this training.

    Raises:
        ConfigError: If there would be too few checkpoints, or another setting decides what is kept.
    """
    wanted = settings.average_checkpoints
    if wanted == 1:
        return
    made = 0 if settings.save_steps is None else -(-steps // settings.save_steps)
    if made < wanted:
        message = (
            f"average_checkpoints is {wanted}, but {steps} steps with save_steps {settings.save_steps} make "
            f"{made} checkpoints. Lower save_steps to {max(1, steps // wanted)}, or average fewer."
        )
        raise ConfigError(message)
    if settings.eval_steps is not None or ranks.sharded:
        message = (
            "average_checkpoints takes the mean of the last checkpoints, "
            + ("eval_steps keeps the best one instead." if settings.eval_steps else "which FSDP shards.")
            + " Leave one of the two off."
        )
        raise ConfigError(message)


def save_average(backbone: Backbone, checkpoints: Path, settings: TrainSettings, folder: Path) -> None:
    """Save the mean of the last checkpoints in place of the last one.

    LoRA's factors cannot be averaged, their products can: the adapter that is written holds all factors side
    by side, so its rank is ``average_checkpoints`` times ``lora_rank``, and its update is exactly the mean.

    Args:
        backbone: The trained model; its weights are changed.
        checkpoints: Where they lie.
        settings: ``average_checkpoints``, ``adapter``.
        folder: ``adapter/`` or ``model/`` with the last weights; they are replaced.

    Raises:
        TrainingError: If checkpoints are gone.
    """
    found = whole_checkpoints(checkpoints)[-settings.average_checkpoints :]
    if len(found) < settings.average_checkpoints:
        message = (
            f"{checkpoints} holds {len(found)} whole checkpoints, {settings.average_checkpoints} were to be "
            f"averaged; something removed them. Train again."
        )
        raise TrainingError(message)
    states = [load_file(path / WEIGHTS) for path in found]
    if settings.adapter == "full":
        mean = {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
        load_adapter_state(backbone, {name: mean[name].to(states[0][name].dtype) for name in mean})
        save_model(backbone, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        adapters = [Path(scratch) / str(number) for number in range(len(states))]
        for state, path in zip(states, adapters, strict=True):
            load_adapter_state(backbone, state)
            save_adapter(backbone, path)
        average_adapters(adapters)
        for name in (_ADAPTER, _CONFIG):
            (adapters[0] / name).replace(folder / name)


def average_adapters(folders: Sequence[Path]) -> None:
    """Turn the first of several LoRA adapters of one shape into one whose update is the mean of theirs."""
    states = [load_file(path / _ADAPTER) for path in folders]
    joined: dict[str, Tensor] = {}
    for name in states[0]:
        parts = [state[name] for state in states]
        is_down = ".lora_A." in name
        joined[name] = torch.cat(
            parts if is_down else [part / len(parts) for part in parts], 0 if is_down else 1
        )
    config = json.loads((folders[0] / _CONFIG).read_text(encoding="utf-8"))
    config |= {key: config[key] * len(folders) for key in ("r", "lora_alpha")}  # the scale stays
    save_file(joined, folders[0] / _ADAPTER, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folders[0] / _CONFIG).write_text(text, encoding="utf-8")
