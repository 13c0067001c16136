"""Vectors that work when cut off (Kusupati et al. 2022, arXiv 2205.13147, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stm_retriever.errors import ConfigError


def prefix(vectors: Tensor, length: int) -> Tensor:
    """The first ``length`` coordinates of unit vectors, at unit length again."""
    return vectors if length == vectors.shape[-1] else normalize(vectors[..., :length], dim=-1)


def matryoshka(
    loss: Callable[..., Tensor],
    vectors: Sequence[Tensor],
    lengths: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """A loss summed over several lengths of the same vectors.

    Args:
        loss: Called with the cut vectors in order.
        vectors: Tensors (..., dimension) of unit vectors.
        lengths: Where they are cut.
        weights: Of each length; ``None``: the mean.

    Returns:
        The weighted sum, of the shape that ``loss`` returns.

    Raises:
        ConfigError: If there are not as many weights as lengths, or no lengths.
    """
    if not lengths or (weights is not None and len(weights) != len(lengths)):
        message = f"matryoshka has {len(lengths)} lengths and {weights!r} for weights; give one for each."
        raise ConfigError(message)
    chosen = [1 / len(lengths)] * len(lengths) if weights is None else weights
    losses = [loss(*(prefix(part, length) for part in vectors)) for length in lengths]
    return torch.stack([weight * value for weight, value in zip(chosen, losses, strict=True)]).sum(dim=0)


def checked_lengths(wanted: Sequence[int], dimension: int) -> tuple[int, ...]:
    """The lengths of a training, longest first, the full one always among them.

    Raises:
        ConfigError: If a vector of this dimension cannot be cut to a length.
    """
    odd = sorted(length for length in wanted if not 1 <= length <= dimension)
    if odd:
        message = (
            f"matryoshka asks for vectors of length {', '.join(map(str, odd))}, but the model's have "
            f"{dimension} coordinates. Give lengths from 1 to {dimension}."
        )
        raise ConfigError(message)
    return tuple(sorted({*wanted, dimension}, reverse=True))
