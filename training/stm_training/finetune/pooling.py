"""From token states to one vector, reading the padding mask and never the padding side."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "last"]


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Reduce the states of each text's tokens to one vector.

    Args:
        states: (batch, length, dimension), any floating type.
        attention_mask: (batch, length) int64, 1 for tokens and 0 for padding on either side.
        pooling: First token, mean over tokens, or last token.

    Returns:
        (batch, dimension) float32, not normalised.
    """
    if pooling == "mean":
        weights = attention_mask[..., None].to(torch.float32)
        return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    places = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    if pooling == "cls":
        places = places.flip(0)
    index = (attention_mask * places[None]).argmax(dim=-1)  # the outermost unmasked place on that side
    rows = torch.arange(states.shape[0], device=states.device)
    return states[rows, index].float()
