"""The gradients of LoRA's matrices by pair, out of one backward pass over many pairs' texts.

A linear map's gradient is the sum over tokens of (gradient at its output) x (its input). Both are at hand in
a single pass, so that the sum can be taken for each pair apart, and the texts need not go through the model
pair by pair. LoRA's matrices are small enough to hold such a sum for many pairs at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_AGREES = 0.02  # relative; the two differ by rounding, under bfloat16 by less than a hundredth


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """A layer that computes ``base(x) + scale * (x A') B'``, whatever code does so."""

    module: nn.Module
    down: nn.Parameter
    up: nn.Parameter
    scale: float


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The layers with one active adapter, if their A and B are all that is trainable; else none."""
    layers = []
    module: Any
    for module in model.modules():
        names: Any = getattr(module, "active_adapters", ())
        if not hasattr(module, "lora_A") or len(names) != 1 or names[0] not in module.lora_A:
            continue
        down, up = (getattr(module, part)[names[0]].weight for part in ("lora_A", "lora_B"))
        layers.append(LoraLayer(module, down, up, float(module.scaling[names[0]])))
    known = {id(weight) for layer in layers for weight in (layer.down, layer.up)}
    trainable = {id(weight) for weight in model.parameters() if weight.requires_grad}
    return layers if known == trainable else []


class PairSums:
    """Watches forward and backward passes of LoRA layers while it is entered.

    Args:
        layers: See :func:`lora_layers`.
        owner: (n,) int64; the pair that each of n texts belongs to.
        pairs: Number of pairs.
    """

    def __init__(self, layers: Sequence[LoraLayer], owner: Tensor, pairs: int) -> None:
        self._layers = layers
        self._owner = owner
        self._pairs = pairs
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> PairSums:
        self._handles = [
            layer.module.register_forward_hook(partial(self._watch, layer)) for layer in self._layers
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def explain(self, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
        """Whether the sums over all pairs are the gradients of the batch that autograd found.

        They are not where a layer's code is not what it is taken for, or its input holds texts in another
        layout than (texts, tokens, width).
        """
        for weight, gradient in zip(weights, gradients, strict=True):
            ours = self._sums.get(weight)  # type: ignore[call-overload]
            found = 0.0 if gradient is None else float(gradient.norm())
            if ours is None:
                if found > 0:
                    return False
                continue
            expected = torch.zeros_like(weight) if gradient is None else gradient
            if not float((ours.sum(dim=0) - expected).norm()) <= _AGREES * self._scale(weight, found):
                return False
        return True

    def norms(self) -> NDArray[np.float64]:
        """(pairs,) norms over all layers."""
        squares = torch.zeros(self._pairs, dtype=torch.float64, device=self._owner.device)
        for sums in self._sums.values():
            squares += sums.flatten(1).double().square().sum(dim=1)
        found: NDArray[np.float64] = squares.sqrt().cpu().numpy()
        return found

    def _scale(self, weight: Tensor, found: float) -> float:
        # Pairs may cancel out: what rounds is as large as their own gradients.
        return max(found, float(self._sums[weight].flatten(1).norm(dim=1).sum()))  # type: ignore[index]

    def _watch(self, layer: LoraLayer, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = inputs[0].detach()
        if output.requires_grad and given.dim() == 3 and len(given) == len(self._owner):
            output.register_hook(partial(self._add, layer, given))  # type: ignore[no-untyped-call]

    def _add(self, layer: LoraLayer, given: Tensor, gradient: Tensor) -> None:
        given, gradient = given.float(), layer.scale * gradient.float()
        inner = given @ layer.down.detach().T
        self._sum(layer.up, torch.einsum("nto,ntr->nor", gradient, inner))
        self._sum(layer.down, torch.einsum("ntr,nti->nri", gradient @ layer.up.detach(), given))

    def _sum(self, weight: nn.Parameter, each: Tensor) -> None:
        summed = each.new_zeros(self._pairs, *each.shape[1:]).index_add_(0, self._owner, each)
        self._sums[weight] = self._sums[weight] + summed if weight in self._sums else summed
