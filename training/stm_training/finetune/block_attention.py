"""Attention over texts that lie one after the other in a single row, in blocks of texts padded to one length.

torch's fused attention is slow backwards on CPUs (bfloat16, measured: 3 to 15 times the time of these plain
products), and transformers' plain one takes several passes over the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Scores that are worked on at once: more would leave the caches, and the memory of long texts would grow.
_SCORES = 1 << 20
# The attention weights of longer texts are computed again in the backward pass instead of being kept.
_KEPT_LENGTH = 256
# torch's softmax takes bfloat16 rows 32 numbers at a time and is slow with what is left over.
_LANES = 32


@dataclass(frozen=True)
class Block:
    """Texts that attention pads to one length.

    Attributes:
        start: Place of the first token in the row.
        lengths: Tokens of each text, the longest first.
    """

    start: int
    lengths: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, int]:
        """Texts, and tokens of each, padding included."""
        return len(self.lengths), self.lengths[0]

    @cached_property
    def tokens(self) -> int:
        """Without padding."""
        return sum(self.lengths)

    @cached_property
    def places(self) -> Tensor | None:
        """(tokens,) int64 places of the tokens among the padded ones; ``None`` without padding."""
        texts, length = self.padded
        if self.tokens == texts * length:
            return None
        return (torch.arange(length) < torch.tensor(self.lengths)[:, None]).flatten().nonzero()[:, 0]

    def cut(self, texts: int) -> Iterator[Block]:
        """Blocks of at most so many texts."""
        if texts >= len(self.lengths):
            yield self
            return
        start = self.start
        for first in range(0, len(self.lengths), texts):
            part = Block(start, self.lengths[first : first + texts])
            start += part.tokens
            yield part


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[Block],
    masks: Sequence[Tensor | None],
    scale: float,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Let every token attend to the tokens of its own text.

    Args:
        query: (tokens, heads, width).
        key: (tokens, key heads, width); heads are a multiple of key heads, and neighbours share one.
        value: As ``key``.
        blocks: Where the texts lie; together they are all tokens.
        masks: Per block what is added to its scores, (texts or 1, 1, length, length); it must hide padding.
            ``None`` where there is nothing to hide.
        scale: Multiplies the scores.
        dtype: Type of the products and the result; ``None``: that of ``value``.

    Returns:
        (tokens, heads, width).
    """
    out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, (blocks, masks), scale, dtype or value.dtype
    )
    return out


class _BlockAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Any, scale: float, dtype: torch.dtype
    ) -> Tensor:
        out = torch.empty(query.shape, dtype=dtype, device=query.device)
        keeps = any(ctx.needs_input_grad[:3])
        saved: list[Tensor | None] = []
        for part, mask in _parts(layout, heads=query.shape[1]):
            k, v = _by_head(key, part, dtype), _by_head(value, part, dtype)
            # Heads that share a key head lie one below the other, as if their texts were that much longer.
            q = _by_head(query, part, dtype, scale).view(len(k), -1, k.shape[-1])
            weights = _weights(q, k, mask, part)
            _from_heads(torch.bmm(weights, v), out, part)
            if keeps:
                saved += [q, k, v, weights if part.padded[1] <= _KEPT_LENGTH else None]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale = layout, scale
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in (query, key, value)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [torch.empty(shape, dtype=dtype, device=grad.device) for shape, dtype in ctx.like]
        saved = iter(ctx.saved_tensors)
        for part, mask in _parts(ctx.layout, heads=grad.shape[1]):
            q, k, v, weights = next(saved), next(saved), next(saved), next(saved)
            if weights is None:
                weights = _weights(q, k, mask, part)
            g = _by_head(grad, part, q.dtype).view(q.shape)
            scores_grad = _softmax_backward(torch.bmm(g, v.transpose(1, 2)), weights)
            _from_heads(torch.bmm(weights.transpose(1, 2), g), grads[2], part)
            _from_heads(torch.bmm(scores_grad.transpose(1, 2), q), grads[1], part)  # q holds the scale
            _from_heads(torch.bmm(scores_grad, k), grads[0], part, ctx.scale)
        return (*grads, None, None, None)


def _parts(layout: Any, *, heads: int) -> Iterator[tuple[Block, Tensor | None]]:
    """Cut blocks into parts of a bounded number of scores, with their masks."""
    for block, mask in zip(*layout, strict=True):
        length, first = block.padded[1], 0
        for part in block.cut(max(1, _SCORES // (heads * length**2))):
            last = first + len(part.lengths)
            own = mask if mask is None or mask.shape[0] == 1 else mask[first:last]
            # A part's own longest text may be shorter than the block's.
            short = part.padded[1]
            yield part, own if own is None or short == length else own[:, :, :short, :short]
            first = last


def _by_head(tensor: Tensor, part: Block, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Copy a part of (tokens, heads, width) to (texts * heads, length, width), with 0 for padding."""
    (texts, length), (heads, width) = part.padded, tensor.shape[1:]
    rows = tensor[part.start : part.start + part.tokens]
    if part.places is not None:
        rows = rows.new_zeros(texts * length, heads, width).index_copy_(0, part.places, rows)
    copy = torch.empty((texts, heads, length, width), dtype=dtype, device=tensor.device)
    source = rows.view(texts, length, heads, width).transpose(1, 2)
    if scale == 1.0:
        copy.copy_(source)
    else:
        torch.mul(source, scale, out=copy)
    return copy.view(-1, length, width)


def _from_heads(source: Tensor, target: Tensor, part: Block, scale: float = 1.0) -> None:
    """Copy what :func:`_by_head` made, in any grouping of heads, back to its place, without padding."""
    (texts, length), (heads, width) = part.padded, target.shape[1:]
    rows = source.view(texts, heads, length, width).transpose(1, 2)
    place = target[part.start : part.start + part.tokens]
    if part.places is not None:
        rows = rows.reshape(texts * length, heads, width).index_select(0, part.places)
    else:
        place = place.view(texts, length, heads, width)
    if scale == 1.0:
        place.copy_(rows)
    else:
        torch.mul(rows, scale, out=place)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, part: Block) -> Tensor:
    texts, length = part.padded
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        scores.view(texts, -1, length, length).add_(mask)
    if length % _LANES and scores.dtype != torch.float32:
        return torch.softmax(scores.float(), dim=-1).to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    if weights.shape[-1] < _LANES and weights.dtype != torch.float32:
        grads: Tensor = torch._softmax_backward_data(grad.float(), weights.float(), -1, torch.float32)
        return grads.to(weights.dtype)
    grads = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    return grads
