"""bfloat16 where the hardware multiplies it natively, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

from stm_retriever.errors import ConfigError

Precision = Literal["auto", "bf16", "fp32"]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices.

    Without them bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Private, but the only place where torch tells it; absent names mean "unknown", hence no.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Return the context in which a forward pass runs in the wanted precision.

    Args:
        device: Where the model lies.
        precision: ``auto``: bf16 where the device multiplies it natively, else fp32.

    Raises:
        ConfigError: If bf16 is asked for on a device without it: it would be slower, not faster.
    """
    native = multiplies_bf16(device)
    if precision == "bf16" and not native:
        message = (
            f"precision is 'bf16', but this {device.type} device has no bfloat16 instructions, so it would "
            f"be slower than float32. Use precision 'auto' or 'fp32'."
        )
        raise ConfigError(message)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=native and precision != "fp32")
