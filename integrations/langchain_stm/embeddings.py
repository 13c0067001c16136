"""A retriever folder as LangChain embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from stm_retriever import ConfigError, Embedder


class STMEmbeddings(BaseModel, Embeddings):
    """Embeddings by a retriever folder: queries get its query prompt, documents its document prompt.

    The model is loaded once, at construction. Vectors have length 1, so that dot product, cosine and
    Euclidean distance rank alike in whatever vector store they go to.

    Example:
        .. code-block:: python

            embeddings = STMEmbeddings(model="runs/demo/retriever")
            store = InMemoryVectorStore.from_texts(["..."], embedding=embeddings)

    Raises:
        ModelFolderError: If there is no such folder, or it was not made by ``stm-train export``.
        ConfigError: If not exactly one of ``model`` and ``embedder`` is given; if the folder has no such
            variant.
        ArtifactMismatchError: If the folder's files do not belong together.
        ProviderError: If the device is not there.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    """The retriever folder, or a Hugging Face hub name ``org/name``; an existing folder wins."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""
    local_files_only: bool = False
    """Take a hub name from the local cache alone and never touch the network."""
    variant: str = "fp32"
    """Which of the folder's ONNX files to run."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where to run it; ``"cuda"`` is an error where it cannot."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one run; None takes those that this process may use."""
    dimension: int | None = Field(default=None, ge=1)
    """Length of the vectors, cut where the model allows it (Matryoshka); None takes them whole."""

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self, *, model: str | Path | None = None, embedder: Embedder | None = None, **options: Any
    ) -> None:
        if embedder is not None:
            options = _options_of(embedder, model, options)
        elif model is None:
            raise ConfigError(
                "STMEmbeddings got neither model= nor embedder=, so there is nothing to embed with. "
                "Pass STMEmbeddings(model='folder'), or embedder= with a loaded Embedder."
            )
        else:
            options = {"model": str(model), **options}
        super().__init__(**options)
        self._embedder = embedder if embedder is not None else self._load()

    @property
    def embedder(self) -> Embedder:
        """The loaded model."""
        return self._embedder

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, the query prompt put before it.

        Returns:
            A vector of length 1, as Python floats.

        Raises:
            DataError: If the text is empty or holds a lone surrogate.
        """
        return _floats(self._embedder.encode_query([text])[0])

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed documents, the document prompt put before each.

        Returns:
            A vector of length 1 per text, in their order, as Python floats.

        Raises:
            DataError: If a text is empty or holds a lone surrogate.
        """
        return [_floats(row) for row in self._embedder.encode_document(texts)]

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query in a thread of the event loop's pool; the loop goes on meanwhile."""
        return await asyncio.to_thread(self.embed_query, text)

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed documents in a thread of the event loop's pool; the loop goes on meanwhile."""
        return await asyncio.to_thread(self.embed_documents, texts)

    def _load(self) -> Embedder:
        return Embedder.load(
            self.model,
            revision=self.revision,
            local_files_only=self.local_files_only,
            variant=self.variant,
            device=self.device,
            threads=self.threads,
            dimension=self.dimension,
        )


def _options_of(embedder: Embedder, model: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    given = sorted(options) if model is None else ["model", *sorted(options)]
    if given:
        raise ConfigError(
            f"STMEmbeddings got an embedder= that is loaded already ({embedder.name!r}) and also "
            f"{', '.join(given)}, which could no longer take effect. Pass the one or the other."
        )
    if embedder.precision != "float32":
        raise ConfigError(
            f"STMEmbeddings got an embedder of {embedder.precision} vectors ({embedder.name!r}), which a "
            "vector store would take for coordinates. Load it with precision='float32'; let the store make "
            "them smaller."
        )
    return {
        "model": embedder.hub_name or str(embedder.path),
        "revision": embedder.revision,
        "variant": embedder.variant,
        "device": embedder.device,
        "dimension": None if embedder.dimension == embedder.manifest.dimension else embedder.dimension,
    }


def _floats(vector: Any) -> list[float]:
    floats: list[float] = vector.tolist()
    return floats
