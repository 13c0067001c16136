"""A linear layer with its LoRA update as one step of autograd: what PEFT's computes, with less around it.

Under autocast PEFT's layer casts each weight, scales and adds in passes of their own, and keeps what autograd
may need of each. Here y = x W' + b + s (x A') B' goes into one result, and the backward pass computes what is
needed: dx, dA and dB (W is frozen). LoRA weights and their gradients stay float32.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from stm_training.finetune.packing import is_traced


class FastLoraLinear(PeftLinear):  # type: ignore[misc]
    """PEFT's LoRA layer over ``nn.Linear`` with a faster forward and backward pass.

    Whatever is not a plain low-rank update of a frozen layer (dropout, merged or several adapters, variants,
    sharded weights, tracing) takes PEFT's own way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map (..., in) to (..., out) in autocast's type, or in the type of ``x`` without autocast."""
        dtype = _compute_dtype(x, self.base_layer.weight)
        if args or kwargs or dtype is None or not self._is_plain():
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = self.active_adapters[0]
        base: nn.Linear = self.base_layer
        return lora_linear(
            _as_type(x, dtype),
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            float(self.scaling[name]),
        )

    def _is_plain(self) -> bool:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return False
        name = names[0]
        layers = (self.base_layer, self.lora_A[name], self.lora_B[name])
        dropout = self.lora_dropout[name]
        return (
            # FSDP and quantisation put layers of other types here, whose weights are not what they seem.
            all(type(layer) is nn.Linear for layer in layers)
            and not self.base_layer.weight.requires_grad
            and not (self.base_layer.bias is not None and self.base_layer.bias.requires_grad)
            and not self.lora_bias[name]
            and name not in self.lora_variant
            and not (dropout.training and getattr(dropout, "p", 0.0) > 0)
            and not is_traced()
        )


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """Compute x W' + b + s (x A') B'.

    Args:
        x: (..., in); its type is that of the products and of the result.
        weight: (out, in), frozen.
        bias: (out,), frozen, or ``None``.
        down: (rank, in), A of LoRA.
        up: (out, rank), B of LoRA.
        scale: The update's factor s.

    Returns:
        (..., out) of the type of ``x``.
    """
    y: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]
    return y


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        dtype, rows = x.dtype, x.reshape(-1, x.shape[-1])
        frozen, low, high = weight.to(dtype), down.to(dtype), up.to(dtype)
        inner = rows @ low.T
        if bias is None:
            y = rows @ frozen.T
        else:
            y = torch.addmm(bias.to(dtype), rows, frozen.T)
        y.addmm_(inner, high.T, alpha=scale)
        # The weights as they are and not as cast: a float32 base under autocast would be kept twice.
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        dtype = rows.dtype
        grad_x = grad_down = grad_up = None
        inner_grad = (grad @ up.to(dtype)).mul_(ctx.scale)
        if wants_x:
            grad_x = (grad @ weight.to(dtype)).addmm_(inner_grad, down.to(dtype)).view(ctx.shape)
        if wants_down:
            grad_down = (inner_grad.T @ rows).to(down.dtype)
        if wants_up:
            grad_up = (inner.T @ grad).T.contiguous().to(up.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type that the products run in, or ``None`` where PEFT shall say what happens."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == weight.dtype else None


class _LastCast:
    """The last tensor that was cast: query, key and value layers get the same one, one after the other."""

    def __init__(self) -> None:
        self._source: weakref.ref[Tensor] | None = None
        self._state: tuple[object, ...] = ()
        self._result: Tensor | None = None

    def to(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``x.to(dtype)``, the one of the last call if ``x`` is still the same."""
        state = (
            dtype, x._version, x.requires_grad, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        )  # fmt: skip
        result = self._result
        if result is None or self._source is None or self._source() is not x or state != self._state:
            self._source = self._result = None  # letting go of the last one may end its source, and call back
            result = x.to(dtype)
            self._result, self._state = result, state
            self._source = weakref.ref(x, self._forget)
        return result

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if source is self._source:  # nothing outlives the tensor that it was made from
            self._source = self._result = None


_last_cast = _LastCast()


def _as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else _last_cast.to(x, dtype)


__all__ = ["FastLoraLinear", "lora_linear"]
