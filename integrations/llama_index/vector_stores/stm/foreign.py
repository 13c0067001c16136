"""Any LlamaIndex embedding model as an embedder of an index."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index.embeddings.stm import STMEmbedding
from stm_retriever import ConfigError
from stm_retriever.foreign import AnyEmbedder, ForeignEmbedder, as_embedder, class_of


class EmbeddingEncoder:
    """LlamaIndex's two methods under our names."""

    def __init__(self, model: BaseEmbedding) -> None:
        self.model = model

    def encode_query(self, texts: list[str], /) -> Any:
        """Embed queries."""
        return [self.model.get_query_embedding(text) for text in texts]

    def encode_document(self, texts: list[str], /) -> Any:
        """Embed texts."""
        return self.model.get_text_embedding_batch(texts)


def embedder_of(model: BaseEmbedding, embedder_id: str | None = None) -> AnyEmbedder:
    """Turn a LlamaIndex embedding model into an index's embedder.

    Args:
        model: Ours is taken apart again and known by its fingerprint; others by ``embedder_id``, or by their
            class and where they put two probe texts.
        embedder_id: The application's name for somebody else's model.

    Raises:
        ConfigError: If it is no embedding model, or ``embedder_id`` is given for ours.
    """
    if isinstance(model, STMEmbedding):
        return as_embedder(model.embedder, embedder_id)
    if not isinstance(model, BaseEmbedding):
        raise ConfigError(
            f"embed_model={model!r:.60} is a {class_of(model)}, not LlamaIndex's BaseEmbedding. Pass "
            "STMEmbedding(model_name='folder'), or another embedding model."
        )
    return ForeignEmbedder(EmbeddingEncoder(model), embedder_id=embedder_id, class_name=class_of(model))
