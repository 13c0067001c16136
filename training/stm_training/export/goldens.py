"""Texts whose token ids and vectors travel with a folder, so that readers can tell if they read right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stm_retriever import Embedder
from stm_retriever.folder import TokenGolden, VectorGolden
from stm_retriever.types import Role

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

ROLES: tuple[Role, ...] = ("query", "document")

VECTOR_TEXTS = (
    "Why does bread dough need to rest before it is baked?",
    "A tide table lists the hours of high and low water; both come about fifty minutes later each day.",
    "Größe, naïve café, 東京の天気, Σ ≈ 3.14 and a 🦉 on the roof",
)
# Beyond those: white space, digits, code, and a text long enough to be cut by short models.
TOKEN_TEXTS = (
    *VECTOR_TEXTS,
    "  two  spaces,\ta tab\nand a line break ",
    "for i in range(10): total += prices[i] * 1.19  # EUR",
    " ".join(f"Step {number}: turn the valve, read the gauge, write the value down." for number in range(60)),
)


def token_goldens(backbone: Backbone) -> list[TokenGolden]:
    """Returns the ids of the golden texts in both roles."""
    return [
        TokenGolden(role=role, text=text, ids=ids.tolist())
        for role in ROLES
        for text, ids in zip(TOKEN_TEXTS, backbone.tokenizer.encode(TOKEN_TEXTS, role), strict=True)
    ]


def torch_vectors(backbone: Backbone, role: Role) -> npt.NDArray[np.float32]:
    """Returns the vectors of the golden texts, each encoded alone and unpadded, (texts, dimension)."""
    import torch

    was_training = backbone.training
    backbone.eval()
    try:
        vectors = []
        with torch.inference_mode():
            for row in backbone.tokenizer.encode(VECTOR_TEXTS, role):
                ids = torch.from_numpy(row[None])
                vectors.append(backbone(ids, torch.ones_like(ids))[1][0].float().numpy())
    finally:
        backbone.train(was_training)
    return np.stack(vectors)


def vector_goldens(vectors: Mapping[Role, npt.NDArray[np.float32]]) -> list[VectorGolden]:
    """Returns the goldens of vectors by role, each (texts, dimension) in the order of ``VECTOR_TEXTS``."""
    return [
        # nine digits give a float32 back exactly
        VectorGolden(role=role, text=text, vector=[float(f"{value:.9g}") for value in vector])
        for role, rows in vectors.items()
        for text, vector in zip(VECTOR_TEXTS, rows, strict=True)
    ]


def encoded_goldens(embedder: Embedder) -> list[VectorGolden]:
    """Returns the goldens that an embedder itself gives, each text encoded alone."""
    encode = {"query": embedder.encode_query, "document": embedder.encode_document}
    vectors = {role: np.concatenate([encode[role]([text]) for text in VECTOR_TEXTS]) for role in ROLES}
    return vector_goldens(vectors)
