"""Texts made ready once for being encoded by one merge after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stm_retriever.tokenization import token_budget_batches
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.precision import Precision, autocast


class PreparedTexts:
    """Texts as padded batches of like length; tokenising them is not repeated for every trial.

    Args:
        backbone: Gives the tokenizer and the prompts; they must not change afterwards.
        texts: n texts, without prompts.
        role: Which prompt they get.
        token_budget: Padded tokens per batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        role: Literal["query", "document"],
        *,
        token_budget: int = 8192,
    ) -> None:
        self._backbone = backbone
        self._count = len(texts)
        ids = backbone.tokenizer.encode(texts, role) if texts else []
        self._batches = [
            (rows, *backbone.tokenizer.pad([ids[row] for row in rows]))
            for rows in token_budget_batches([len(row) for row in ids], token_budget)
        ]

    def encode(self, precision: Precision = "auto") -> NDArray[np.float32]:
        """Vectors (n, dimension) float32 of unit length, by the backbone's weights of this moment."""
        backbone = self._backbone
        vectors = np.empty((self._count, backbone.dimension), dtype=np.float32)
        device = backbone.device
        was_training = backbone.training
        backbone.eval()
        try:
            with torch.inference_mode(), autocast(device, precision):
                for rows, ids, mask in self._batches:
                    _, batch = backbone(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
                    vectors[rows] = batch.float().cpu().numpy()
        finally:
            backbone.train(was_training)
        return vectors
