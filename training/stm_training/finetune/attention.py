"""Attention masks and position ids that are ours, computed from the padding mask alone.

Training, the parity gate and the exported graph all run these few tensor operations, so that padding side
and batch mates never change a vector, decoders can be unmasked, and no model-specific mask code is traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stm_retriever.errors import ModelFolderError

# The lowest number that float32 and bfloat16 share: autocast must not turn it into -inf, because a row that
# is -inf throughout (a left-padded position under a causal mask) becomes NaN.
_LOWEST = torch.finfo(torch.bfloat16).min
_KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class AttentionPattern:
    """Which positions a model's layers may look at.

    Attributes:
        causal: Whether a position sees only itself and earlier ones.
        reach: How many positions back (and ahead, where not causal) a sliding layer sees, itself not
            counted; ``None`` if no layer slides.
        mixed: Whether full and sliding layers alternate, so that the model takes one mask of each kind.
    """

    causal: bool
    reach: int | None = None
    mixed: bool = False

    @classmethod
    def of(cls, config: Any, *, causal: bool) -> AttentionPattern:
        """Read the pattern off a transformers configuration.

        Args:
            config: Configuration of a text model.
            causal: The attention mode that the model shall have.

        Raises:
            ModelFolderError: If some layers use an attention that we cannot mask.
        """
        layer_types = set(getattr(config, "layer_types", None) or [])
        if not layer_types <= _KNOWN_LAYER_TYPES:
            unknown = sorted(layer_types - _KNOWN_LAYER_TYPES)
            message = (
                f"The model ({config.model_type}) has layers of kind {unknown}, which cannot be masked from "
                f"the padding mask, so its vectors would depend on the batch. Use a base whose layers are "
                f"all of {sorted(_KNOWN_LAYER_TYPES)}."
            )
            raise ModelFolderError(message)
        window = getattr(config, "sliding_window", None)
        slides = "sliding_attention" in layer_types or (not layer_types and window is not None)
        if not slides or window is None:
            return cls(causal=causal)
        # transformers counts the window inclusively where attention goes both ways, except in Gemma 3's own
        # bidirectional mode (EmbeddingGemma), which counts it exclusively like every causal model.
        exclusive = causal or bool(getattr(config, "use_bidirectional_attention", False))
        return cls(causal=causal, reach=window - 1 if exclusive else window, mixed=len(layer_types) > 1)

    def masks(self, attention_mask: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Build the additive mask that the model takes as is.

        Args:
            attention_mask: (batch, length) int64, 1 for tokens and 0 for padding on either side.
            dtype: Floating type of the mask.

        Returns:
            (batch, 1, length, length), 0 where a position may look and a very low finite number elsewhere;
            a dictionary of two such masks for models that mix layer kinds.
        """
        if not self.mixed:
            return self._mask(attention_mask, dtype, self.reach)
        return {
            "full_attention": self._mask(attention_mask, dtype, None),
            "sliding_attention": self._mask(attention_mask, dtype, self.reach),
        }

    def _mask(self, attention_mask: Tensor, dtype: torch.dtype, reach: int | None) -> Tensor:
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        distance = positions[:, None] - positions[None, :]  # query position minus key position
        allowed = attention_mask[:, None, None, :].bool()
        if self.causal:
            allowed = allowed & (distance >= 0)
        if reach is not None:
            allowed = allowed & (distance.abs() <= reach)
        allowed = allowed.expand(-1, 1, attention_mask.shape[1], -1)
        lowest = max(_LOWEST, torch.finfo(dtype).min)
        zero = torch.zeros((), dtype=dtype, device=attention_mask.device)
        return torch.where(allowed, zero, torch.full_like(zero, lowest))


def position_offset(model: nn.Module) -> int:
    """Position id of a text's first token: 0, or padding index + 1 in the RoBERTa family.

    RoBERTa-like models (XLM-R) keep the rows up to the padding index out of use; they are told by the
    padding index of their table of absolute positions.
    """
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        return int(table.padding_idx) + 1
    return 0


def position_ids(attention_mask: Tensor, offset: int = 0) -> Tensor:
    """Positions counted over tokens only, so that padding on the left does not shift them.

    Args:
        attention_mask: (batch, length) int64.
        offset: Position id of the first token; see :func:`position_offset`.

    Returns:
        (batch, length) int64; padding on the left gets the first token's position and is masked anyway.
    """
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0) + offset
