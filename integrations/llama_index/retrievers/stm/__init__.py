"""Search an index folder in LlamaIndex: ``STMRetriever(index="index-folder", similarity_top_k=4)``."""

from __future__ import annotations

from stm_retriever.errors import require

require("llama_index.core", extra="llama-index", purpose="llama_index.retrievers.stm")

from llama_index.retrievers.stm.base import STMRetriever  # noqa: E402  (the check above must come first)

__all__ = ["STMRetriever"]
