"""A retriever folder as LlamaIndex's embedding model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index_instrumentation import get_dispatcher

from llama_index.embeddings.stm.cache import athrough_cache, through_cache
from stm_retriever import ArtifactMismatchError, ConfigError, Embedder
from stm_retriever.types import Role

dispatcher = get_dispatcher(__name__)


class STMEmbedding(BaseEmbedding):
    """Embeddings by a retriever folder: queries get its query prompt, texts its document prompt.

    The model is loaded once, at construction. Vectors have length 1. An ``embeddings_cache`` is used under
    keys that name model and role, so that a query never gets a document's vector nor another model's; one
    store may serve several models. What ``to_dict`` gives holds the model's fingerprint: an ingestion cache
    does not take a retrained model in the same folder for the old one, and ``from_dict`` refuses it.

    Example:
        .. code-block:: python

            Settings.embed_model = STMEmbedding(model_name="runs/demo/retriever")

    Raises:
        ModelFolderError: If there is no such folder, or it was not made by ``stm-train export``.
        ConfigError: If not exactly one of ``model_name`` and ``embedder`` is given; if the folder has no
            such variant.
        ArtifactMismatchError: If the folder's files do not belong together, or not to ``fingerprint``.
        ProviderError: If the device is not there.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(description="The retriever folder, or a Hugging Face hub name org/name.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub name.")
    local_files_only: bool = Field(default=False, description="Never touch the network.")
    variant: str = Field(default="fp32", description="Which of the folder's ONNX files to run.")
    device: Literal["cpu", "cuda", "auto"] = Field(default="cpu", description="Where to run it.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of one run; None takes all.")
    dimension: int | None = Field(
        default=None, ge=1, description="Length of the vectors, where the model allows to cut them."
    )
    fingerprint: str | None = Field(
        default=None, description="Which model must lie there; filled in at loading, an error if it differs."
    )
    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts per call; the model forms its own batches by length."
    )

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self, model_name: str | Path | None = None, *, embedder: Embedder | None = None, **options: Any
    ) -> None:
        if embedder is not None:
            options = _options_of(embedder, model_name, options)
        elif model_name is None:
            raise ConfigError(
                "STMEmbedding got neither model_name= nor embedder=, so there is nothing to embed with. "
                "Pass STMEmbedding(model_name='folder'), or embedder= with a loaded Embedder."
            )
        else:
            options = {"model_name": str(model_name), **options}
        super().__init__(**options)
        self._embedder = embedder if embedder is not None else self._load()
        self._check_fingerprint()

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return "STMEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The loaded model."""
        return self._embedder

    # What LlamaIndex asks of an embedding model -------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._encode([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await asyncio.to_thread(self._encode, [query], "query"))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._encode([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await asyncio.to_thread(self._encode, [text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._encode(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._encode, texts, "document")

    def _encode(self, texts: list[str], role: Role) -> list[Embedding]:
        encode = self._embedder.encode_query if role == "query" else self._embedder.encode_document
        vectors: list[Embedding] = encode(texts).tolist()
        return vectors

    # Every way by which LlamaIndex reaches its cache, with keys of ours -------------------------------------

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query, the query prompt put before it; a vector of length 1."""
        return self._get_one(query, "query")

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query in a thread of the event loop's pool; the loop goes on meanwhile."""
        return await self._aget_one(query, "query")

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a text as a document, the document prompt put before it; a vector of length 1."""
        return self._get_one(text, "document")

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a text as a document in a thread of the event loop's pool; the loop goes on meanwhile."""
        return await self._aget_one(text, "document")

    def _get_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        return self._get_many(texts, "document")

    async def _aget_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        return await self._aget_many(texts, "document")

    def _get_one(self, text: str, role: Role) -> Embedding:
        with self._reported(text) as report:
            vector = self._get_many([text], role, limiter=self.rate_limiter)[0]
            report(vector)
        return vector

    async def _aget_one(self, text: str, role: Role) -> Embedding:
        with self._reported(text) as report:
            vector = (await self._aget_many([text], role, limiter=self.rate_limiter))[0]
            report(vector)
        return vector

    # LlamaIndex's batches wait for the rate limiter themselves; its single texts only if they are not cached.
    def _get_many(self, texts: list[str], role: Role, *, limiter: Any = None) -> list[Embedding]:
        def encode(missing: list[str]) -> list[Embedding]:
            if limiter is not None:
                limiter.acquire()
            return self._encode(missing, role)

        if self.embeddings_cache is None:
            return encode(texts)
        return through_cache(self.embeddings_cache, self._embedder, role, texts, encode)

    async def _aget_many(self, texts: list[str], role: Role, *, limiter: Any = None) -> list[Embedding]:
        async def encode(missing: list[str]) -> list[Embedding]:
            if limiter is not None:
                await limiter.async_acquire()
            return await asyncio.to_thread(self._encode, missing, role)

        if self.embeddings_cache is None:
            return await encode(texts)
        return await athrough_cache(self.embeddings_cache, self._embedder, role, texts, encode)

    @contextmanager
    def _reported(self, text: str) -> Iterator[Callable[[Embedding], None]]:
        """Send the events that LlamaIndex's own getters send."""
        model = self.to_payload()
        dispatcher.event(EmbeddingStartEvent(model_dict=model))
        with self.callback_manager.event(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: model}
        ) as event:

            def report(vector: Embedding) -> None:
                event.on_end(payload={EventPayload.CHUNKS: [text], EventPayload.EMBEDDINGS: [vector]})
                dispatcher.event(EmbeddingEndEvent(chunks=[text], embeddings=[vector]))

            yield report

    # Loading and serialising --------------------------------------------------------------------------------

    def _load(self) -> Embedder:
        return Embedder.load(
            self.model_name,
            revision=self.revision,
            local_files_only=self.local_files_only,
            variant=self.variant,
            device=self.device,
            threads=self.threads,
            dimension=self.dimension,
        )

    def _check_fingerprint(self) -> None:
        found = self._embedder.fingerprint
        if self.fingerprint not in (None, found):
            raise ArtifactMismatchError(
                f"{self.model_name!r} holds the model {found}, but this STMEmbedding was saved with "
                f"{self.fingerprint}; vectors of the two cannot be compared. Put the old folder back, or "
                "leave fingerprint= out and embed all texts again."
            )
        self.fingerprint = found

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["__pydantic_private__"] = None  # the copy loads the model itself
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The base class would swallow a missing or changed folder here and fail at the first query instead.
        self.__init__(**state["__dict__"])  # type: ignore[misc]


def _options_of(embedder: Embedder, model_name: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    ours = {"revision", "local_files_only", "variant", "device", "threads", "dimension"} & options.keys()
    given = sorted(ours) if model_name is None else ["model_name", *sorted(ours)]
    if given:
        raise ConfigError(
            f"STMEmbedding got an embedder= that is loaded already ({embedder.name!r}) and also "
            f"{', '.join(given)}, which could no longer take effect. Pass the one or the other."
        )
    if embedder.precision != "float32":
        raise ConfigError(
            f"STMEmbedding got an embedder of {embedder.precision} vectors ({embedder.name!r}), which a "
            "vector store would take for coordinates. Load it with precision='float32'; let the store make "
            "them smaller."
        )
    return {
        **options,
        "model_name": embedder.hub_name or str(embedder.path),
        "revision": embedder.revision,
        "variant": embedder.variant,
        "device": embedder.device,
        "dimension": None if embedder.dimension == embedder.manifest.dimension else embedder.dimension,
    }
