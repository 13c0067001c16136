"""Fully sharded data parallelism (FSDP2): each process holds a part of every weight.

accelerate shards models on accelerators only. Ours is sharded here, the same way on CPUs (gloo) and on GPUs
(NCCL), so that what is tested on the former holds on the latter.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from stm_training.finetune.backbone import Backbone
from stm_training.finetune.processes import put_from_first, whole

_OPTIMIZER = "optimizer.safetensors"


def shard(backbone: Backbone, device: torch.device) -> None:
    """Shard a model in place, layer by layer, over all processes; each must hold the same weights.

    Args:
        backbone: All weights of one floating type; adapters attached.
        device: Of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Nothing here writes into the vectors that the model returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in _layers(backbone.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(backbone, mesh=mesh)


def save_optimizer(optimizer: Any, names: dict[Tensor, str], file: Path, *, write: bool) -> None:
    """Save the state of each weight whole, so that any number of processes may read it.

    Args:
        optimizer: A torch optimizer with tensors as state.
        names: Name of each weight.
        file: Where to.
        write: Whether this process writes; all must call.
    """
    state = {
        f"{key}/{names[weight]}": whole(value)
        for weight, values in optimizer.state.items()
        for key, value in sorted(values.items())
    }
    if write:
        save_file(state, file)


def load_optimizer(optimizer: Any, names: dict[Tensor, str], file: Path) -> None:
    """Put back what :func:`save_optimizer` saved, sharded as the weights are."""
    found = load_file(file)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            kept = {key: value for key, value in _of(found, names[weight]).items()}
            state = {key: torch.zeros_like(weight) if value.dim() else value for key, value in kept.items()}
            tensors = {key: value for key, value in state.items() if value.dim()}
            put_from_first(tensors, {key: kept[key] for key in tensors})
            optimizer.state[weight] = state


def _of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.partition("/")[0]: value for key, value in state.items() if key.partition("/")[2] == name}


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the members of its largest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(value.numel() for value in found.parameters()) for found in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []
