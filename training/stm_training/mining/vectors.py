"""Encoding for mining: every different text once, and vectors that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stm_retriever.errors import ConfigError, DataError
from stm_training.mining.nearest import Floats

# Texts -> (n, d) unit vectors: Embedder.encode_query, or partial(encode_texts, backbone, role="query").
Encode = Callable[[Sequence[str]], Floats]

LENGTH_TOLERANCE = 0.02  # bf16 vectors are off by some 1e-3


def encode(what: str, function: Encode, texts: Sequence[str]) -> Floats:
    """Encode texts and check what comes back.

    Args:
        what: ``"query"`` or ``"document"``, for the message.
        function: The encoder.
        texts: n texts.

    Returns:
        (n, d) float32, contiguous.

    Raises:
        ConfigError: If the shape is not (n, d) or the vectors are not of unit length.
        DataError: If a vector is not finite.
    """
    vectors = np.ascontiguousarray(function(texts), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ConfigError(
            f"the {what} encoder returned an array of shape {vectors.shape} for {len(texts)} texts; "
            "mining needs one row per text."
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if not np.isfinite(lengths).all():
        place = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise DataError(
            f"the {what} vector of {texts[place][:80]!r} is not finite, so nothing can be near it. "
            "Run stm-train doctor on the model's folder."
        )
    if len(lengths) and float(np.abs(lengths - 1).max()) > LENGTH_TOLERANCE:
        place = int(np.abs(lengths - 1).argmax())
        raise ConfigError(
            f"the {what} vector of {texts[place][:80]!r} has length {lengths[place]:.3f}, not 1: bands and "
            "margins are meant for cosine similarities. Normalise the vectors."
        )
    return vectors
