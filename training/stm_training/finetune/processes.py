"""What the processes of one training tell each other beside gradients."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, distributed, nn


def several() -> bool:
    """Whether this training runs in several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the only process, or the first of several: the one that writes files."""
    return not several() or distributed.get_rank() == 0


def from_first(value: Any) -> Any:
    """Give every process what the first one has.

    Args:
        value: Anything that JSON holds; only the first process's counts.

    Returns:
        The first process's value.
    """
    if not several():
        return value
    # As JSON and not torch's own object broadcast, which unpickles what it receives.
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_meeting_place())
    size = torch.tensor([len(raw)], device=_meeting_place())
    distributed.broadcast(size, src=0)
    if not is_first():
        raw = torch.empty(int(size), dtype=torch.uint8, device=_meeting_place())
    distributed.broadcast(raw, src=0)
    return json.loads(bytes(raw.cpu().tolist()))


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the weights, so that all must take part in a forward pass."""
    return any(hasattr(value, "full_tensor") for value in model.parameters())


def whole(value: Tensor) -> Tensor:
    """A weight on the CPU; of a sharded one all processes must ask for it."""
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().to("cpu", copy=True).contiguous()


def put_from_first(weights: dict[str, Tensor], values: dict[str, Tensor] | None) -> None:
    """Overwrite weights in every process by what the first one has.

    Args:
        weights: The model's weights by name, whole or sharded.
        values: The first process's new values, whole; ``None`` elsewhere.
    """
    for name, weight in sorted(weights.items()):
        where = _meeting_place() if several() else weight.device
        if values is not None:
            value = values[name].to(where, weight.dtype).contiguous()
        else:
            value = torch.empty(weight.shape, dtype=weight.dtype, device=where)
        if several():
            distributed.broadcast(value, src=0)
        with torch.no_grad():
            weight.copy_(_as_sharded(value, weight))


def _as_sharded(value: Tensor, weight: Tensor) -> Tensor:
    if not hasattr(weight, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor):
        return value
    return distribute_tensor(value, weight.device_mesh, weight.placements)


def _meeting_place() -> torch.device:
    nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
