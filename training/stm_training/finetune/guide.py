"""Similarities under the untouched base, for negatives that are too close to be negatives.

The guide of Solatorio 2024 (GISTEmbed, arXiv 2402.16829, section 3) is any other model; ours is the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from stm_training.finetune.backbone import Backbone, load_backbone
from stm_training.finetune.forward_pass import ForwardPass
from stm_training.finetune.micro_batches import MicroBatch
from stm_training.finetune.precision import Precision


class Guide:
    """Encodes micro-batches with the base.

    An adapter is switched off for it. Where all weights are trained, the base is loaded a second time.

    Args:
        backbone: The model in training.
        precision: Of the products.
    """

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        self._disable: Any = getattr(backbone.model, "disable_adapter", None)
        base = backbone
        if self._disable is None:
            base = load_backbone(backbone.spec).to(backbone.device)
            base.requires_grad_(False)
        self._forward_pass = ForwardPass(base, precision)

    def vectors(self, parts: Sequence[MicroBatch], *, repeats: int = 0) -> Tensor:
        """Encode micro-batches of n texts in all.

        Args:
            parts: The micro-batches.
            repeats: Passes to run for nothing, where a sharded model waits for all processes in each.

        Returns:
            (n, d) float32 without gradient, in the order of the micro-batches.
        """
        switched_off: AbstractContextManager[object] = (
            nullcontext() if self._disable is None else self._disable()
        )
        with torch.no_grad(), switched_off:
            vectors = [self._forward_pass(part) for part in parts]
            for _ in range(repeats):
                self._forward_pass(parts[0])
            return torch.cat(vectors)
