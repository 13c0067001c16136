"""Any LangChain embeddings as an embedder of an index."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from langchain_stm.embeddings import STMEmbeddings
from stm_retriever import ConfigError, Embedder
from stm_retriever.foreign import AnyEmbedder, ForeignEmbedder, as_embedder, class_of


class EmbeddingsEncoder:
    """LangChain's two methods under our names."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    def encode_query(self, texts: list[str], /) -> Any:
        """Embed queries, one by one, as LangChain does."""
        return [self.embeddings.embed_query(text) for text in texts]

    def encode_document(self, texts: list[str], /) -> Any:
        """Embed documents."""
        return self.embeddings.embed_documents(texts)


class EmbedderEmbeddings(Embeddings):
    """An index's embedder that is not ours as LangChain embeddings."""

    def __init__(self, embedder: AnyEmbedder) -> None:
        self.embedder = embedder

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        vector: list[float] = self.embedder.encode_query([text])[0].tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents."""
        vectors: list[list[float]] = self.embedder.encode_document(texts).tolist()
        return vectors


def embedder_of(embeddings: Embeddings, embedder_id: str | None = None) -> AnyEmbedder:
    """Turn LangChain embeddings into an index's embedder.

    Args:
        embeddings: Ours are taken apart again and known by their fingerprint; others by ``embedder_id``, or
            by their class and where they put two probe texts.
        embedder_id: The application's name for somebody else's model.

    Raises:
        ConfigError: If it is no Embeddings, or ``embedder_id`` is given for ours.
    """
    if isinstance(embeddings, STMEmbeddings):
        return as_embedder(embeddings.embedder, embedder_id)
    if not isinstance(embeddings, Embeddings):
        raise ConfigError(
            f"embedding={embeddings!r:.60} is a {class_of(embeddings)}, not LangChain's Embeddings. Pass "
            "STMEmbeddings(model='folder'), or another Embeddings object."
        )
    return ForeignEmbedder(
        EmbeddingsEncoder(embeddings), embedder_id=embedder_id, class_name=class_of(embeddings)
    )


def embeddings_of(embedder: AnyEmbedder) -> Embeddings:
    """Turn an index's embedder into LangChain embeddings."""
    if isinstance(embedder, Embedder):
        return STMEmbeddings(embedder=embedder)
    if isinstance(embedder.encoder, EmbeddingsEncoder):
        return embedder.encoder.embeddings
    return EmbedderEmbeddings(embedder)
