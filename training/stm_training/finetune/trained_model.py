"""The model of one training: loaded and made trainable at the start, saved at the end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import set_seed

from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.full_weights import save_model, train_all_weights
from stm_training.finetune.gather import Ranks
from stm_training.finetune.lora import adapter_state, attach_lora, load_adapter_state, save_adapter
from stm_training.finetune.precision import multiplies_bf16
from stm_training.finetune.processes import put_from_first, whole
from stm_training.finetune.settings import TrainSettings


def load_trainable(
    spec: BackboneSpec, settings: TrainSettings, *, seed: int, device: torch.device, ranks: Ranks
) -> Backbone:
    """Load a base and attach an adapter, or make all of its weights trainable; the same in every process.

    Args:
        spec: The base.
        settings: ``adapter``, LoRA's rank, alpha and dropout, ``precision``.
        seed: Seeds the adapter's start.
        device: Where it shall lie.
        ranks: The processes of this training.
    """
    backbone = load_backbone(spec).to(device)
    set_seed(seed)
    if settings.adapter == "full":
        train_all_weights(backbone)
    else:
        attach_lora(
            backbone,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
        )
    if ranks.size > 1:
        weights = adapter_state(backbone)
        put_from_first(weights, {name: value.detach() for name, value in weights.items()})
    # Sharding wants one type throughout.
    if settings.precision != "fp32" and multiplies_bf16(device) and not ranks.sharded:
        store_frozen_weights_in_bf16(backbone)
    return backbone


def store_frozen_weights_in_bf16(backbone: Backbone) -> None:
    """Cast the frozen linear layers once, instead of at every forward pass under autocast.

    The products are the same: autocast would round these very weights. Norms and embeddings stay float32.
    """
    for module in backbone.model.modules():
        if isinstance(module, nn.Linear) and not any(
            p.requires_grad for p in module.parameters(recurse=False)
        ):
            module.to(torch.bfloat16)


def save_trained(
    backbone: Backbone, spec: BackboneSpec, settings: TrainSettings, out_dir: Path, ranks: Ranks
) -> Path:
    """Save the trained weights: ``adapter/`` in PEFT's format, or ``model/`` where all were trained.

    Every process must call it; the first one writes.

    Args:
        backbone: The trained model.
        spec: Its base.
        settings: ``adapter``.
        out_dir: Where the folder shall lie.
        ranks: The processes of this training.

    Returns:
        The folder, which is there when this returns.
    """
    folder = out_dir / ("model" if settings.adapter == "full" else "adapter")
    state = {name: whole(value) for name, value in adapter_state(backbone).items()} if ranks.sharded else {}
    with ranks.together("saving the trained model"):
        if ranks.rank == 0:
            if ranks.sharded:
                alone = Ranks()
                backbone = load_trainable(spec, settings, seed=0, device=torch.device("cpu"), ranks=alone)
                load_adapter_state(backbone, state)
            if settings.adapter == "full":
                save_model(backbone, folder)
            else:
                save_adapter(backbone, folder)
    ranks.wait()
    return folder
