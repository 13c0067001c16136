"""Use a retriever folder as LlamaIndex's embedding model: ``STMEmbedding(model_name="folder")``."""

from __future__ import annotations

from stm_retriever.errors import require

require("llama_index.core", extra="llama-index", purpose="llama_index.embeddings.stm")

from llama_index.embeddings.stm.base import STMEmbedding  # noqa: E402  (the check above must come first)

__all__ = ["STMEmbedding"]
