"""A regulariser against forgetting: vectors of general texts shall stay where the base put them.

Neither STM nor BMRetriever has it. The idea is that of Learning without Forgetting (Li and Hoiem 2016,
arXiv 1606.09282, section 3), which holds the *outputs* of the old model; that it is vectors here, their
cosine, and texts of a general collection, is our own plain choice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from stm_retriever.errors import ConfigError
from stm_retriever.types import Role
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.precision import Precision


class AnchorLoss:
    """Distance between the vectors of general texts under the base and under the model in training.

    Make it before the first step: the base's vectors are computed here, once. An attached adapter is
    switched off meanwhile, so that it may already hold weights.

    Args:
        backbone: The model that will be trained.
        texts: n general texts, without prompts.
        seed: Seeds the order in which the texts are drawn.
        role: Which prompt they get.
        precision: As in :func:`~stm_training.finetune.encode.encode_texts`.
        token_budget: Padded tokens of a forward pass.

    Raises:
        ConfigError: If there are no texts.
    """

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        *,
        seed: int = 0,
        role: Role = "document",
        precision: Precision = "auto",
        token_budget: int = 8192,
    ) -> None:
        if not texts:
            raise ConfigError(
                "anchor_weight is above 0, but there are no general texts to hold the vectors of. Name a "
                "collection of general texts, or set anchor_weight to 0."
            )
        self._seed = seed
        with _adapter_off(backbone):
            vectors = encode_texts(backbone, texts, role, token_budget=token_budget, precision=precision)
        self._vectors = torch.from_numpy(vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def batch(self, step: int, size: int) -> list[int]:
        """Which texts a step uses: every text once, in a new order for each pass over them.

        Args:
            step: The optimiser step, from 0; the same step always gets the same texts, so a resumed run does.
            size: How many.

        Returns:
            Places in ``texts``.
        """
        total = len(self._vectors)
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(step * size, (step + 1) * size):
            turn, offset = divmod(place, total)
            if turn not in orders:
                orders[turn] = list(range(total))
                random.Random(f"anchor/{self._seed}/{turn}").shuffle(orders[turn])
            chosen.append(orders[turn][offset])
        return chosen

    def distance(self, vectors: Tensor, rows: Sequence[int]) -> Tensor:
        """Mean of 1 - cosine to the base's vectors.

        Args:
            vectors: (m, dimension) unit vectors of the texts ``rows`` under the model in training.
            rows: m places in ``texts``; see :meth:`batch`.

        Returns:
            Between 0 and 2; scalar float32, with gradient to ``vectors``.
        """
        base = self._vectors[torch.tensor(rows)].to(vectors.device)
        return (1 - (vectors.float() * base).sum(dim=-1)).mean()


def _adapter_off(backbone: Backbone) -> AbstractContextManager[object]:
    disable = getattr(backbone.model, "disable_adapter", None)
    switched_off: AbstractContextManager[object] = nullcontext() if disable is None else disable()
    return switched_off
