"""Gradients of a loss over a whole batch of vectors, whatever memory there is.

Two ways to the same numbers: one graph through all micro-batches, or GradCache (Gao et al. 2021, arXiv
2101.06983, section 3), which encodes each micro-batch twice and holds the activations of one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stm_training.finetune.micro_batches import MicroBatch
from stm_training.finetune.random_state import RandomState

Encode = Callable[[MicroBatch], Tensor]
"""A micro-batch of m texts to its vectors (m, d) float32."""

Backward = Callable[[Tensor, Tensor | None, bool], None]
"""Called with a tensor, its gradient (``None`` for a scalar loss) and whether it is the step's last call."""


class OneGraph:
    """Encode all micro-batches once and keep every activation until the loss is known."""

    def __init__(self, encode: Encode, backward: Backward) -> None:
        self._encode = encode
        self._backward = backward

    def vectors(self, parts: Sequence[MicroBatch]) -> Tensor:
        """Encode micro-batches of n texts in all.

        Returns:
            (n, d) float32, in the order of the micro-batches.
        """
        return torch.cat([self._encode(part) for part in parts])

    def propagate(self, loss: Tensor) -> None:
        """Add the gradients of a loss of those vectors to the weights'."""
        self._backward(loss, None, True)


class GradCache:
    """Encode without a graph, take the loss's gradient at the vectors, then encode again piece by piece.

    The second pass of a micro-batch starts from the random state of its first one, so that it draws the same
    dropout and the gradient belongs to the very vectors that the loss saw (without that, the two passes are
    of different networks). Afterwards the random numbers go on as if each text had been encoded once.
    The second pass runs backwards through the micro-batches: gradients are then summed in the order in which
    one graph would sum them, and the two ways agree to the last bit where the arithmetic is deterministic.

    Args:
        encode: Encodes a micro-batch, with a graph where gradients are enabled.
        backward: Propagates a micro-batch's gradient.
        device: Whose random numbers the model draws.
        repeats: Passes to run beside the micro-batches' own, for nothing: where the model is sharded, each
            forward pass is a collective operation, and all processes must run as many.
    """

    def __init__(self, encode: Encode, backward: Backward, device: torch.device, *, repeats: int = 0) -> None:
        self._encode = encode
        self._backward = backward
        self._device = device
        self._repeats = repeats
        self._passes: list[tuple[MicroBatch, RandomState]] = []
        self._after: RandomState | None = None
        self._leaf = torch.empty(0)

    def vectors(self, parts: Sequence[MicroBatch]) -> Tensor:
        """Encode micro-batches of n texts in all.

        Returns:
            (n, d) float32, in the order of the micro-batches; where the graph of the loss begins.
        """
        found: list[Tensor] = []
        with torch.no_grad():
            for part in parts:
                self._passes.append((part, RandomState.capture(self._device)))
                found.append(self._encode(part))
            self._after = RandomState.capture(self._device)
            for _ in range(self._repeats):
                self._encode(parts[0])
        self._leaf = torch.cat(found).requires_grad_()
        return self._leaf

    def propagate(self, loss: Tensor) -> None:
        """Add the gradients of a loss of those vectors to the weights'."""
        (gradient,) = torch.autograd.grad(loss, self._leaf)
        for _ in range(self._repeats):
            vectors = self._encode(self._passes[0][0])
            self._backward(vectors, torch.zeros_like(vectors), False)
        pieces = torch.split(gradient, [len(part["rows"]) for part, _ in self._passes])
        for number in reversed(range(len(self._passes))):
            part, state = self._passes[number]
            state.restore()
            self._backward(self._encode(part), pieces[number], number == 0)
        if self._after is not None:
            self._after.restore()
