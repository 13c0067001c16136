"""Use an index folder as LlamaIndex's vector store: ``STMVectorStore("index-folder", embed_model)``."""

from __future__ import annotations

from stm_retriever.errors import require

require("llama_index.core", extra="llama-index", purpose="llama_index.vector_stores.stm")

from llama_index.vector_stores.stm.base import STMVectorStore  # noqa: E402  (the check above must come first)

__all__ = ["STMVectorStore"]
