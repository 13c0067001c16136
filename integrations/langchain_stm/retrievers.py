"""An index folder as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, Field

from langchain_stm.documents import to_document
from langchain_stm.open_index import Device, OpenIndex, Settings
from stm_retriever import ConfigError, Retriever
from stm_retriever.foreign import AnyEmbedder
from stm_retriever.rerank import Rerank
from stm_retriever.searching import Mode

_PER_CALL = ("k", "where", "mode", "rerank", "min_score", "group_by_parent")


class STMRetriever(BaseRetriever):
    """Search an index folder; read only, so that other processes may write to it meanwhile.

    Each document that comes back has its ``id``, and in ``metadata`` its own metadata plus ``score`` (cosine
    similarity, higher is better; with another ``mode`` or a reranker see ``Hit``) and, for a part of a longer
    document, ``parent_id``, ``start`` and ``end``. A document's own value under one of these names is kept
    under ``document_score`` and so on.

    ``k``, ``where``, ``mode``, ``rerank``, ``min_score`` and ``group_by_parent`` may also be given per call:
    ``retriever.invoke(question, k=8, where={"year": 2024})``.

    Example:
        .. code-block:: python

            retriever = STMRetriever(index="runs/demo/index", k=4)
            documents = retriever.invoke("What helps against a runny nose in spring?")

    Raises:
        IndexFolderError: If the index is missing, damaged, or of a newer schema.
        ModelFolderError: If the model that it was made with is gone.
        ArtifactMismatchError: If ``embedder`` is another model than the index was made with.
        ConfigError: If arguments contradict each other.
    """

    model_config = ConfigDict(extra="forbid")

    index: str
    """The index folder."""
    k: int = Field(default=4, ge=1)
    """How many documents a call returns, unless the call says otherwise."""
    where: Mapping[str, Any] | None = None
    """A metadata filter; only documents that it takes are searched."""
    mode: Mode = "dense"
    """``"dense"`` by vector, ``"lexical"`` by words, ``"hybrid"`` by both."""
    rerank: Rerank | None = Field(default=None, exclude=True)
    """A function (query, texts) -> scores that orders the best anew, for instance a ``CrossEncoder``."""
    min_score: float | None = None
    """Only documents with at least this score."""
    group_by_parent: bool = False
    """At most one document, the best, of each parent."""
    variant: str | None = None
    """ONNX variant of the model; None takes the one that the index was made with."""
    device: Device = "cpu"
    """Where the model runs; ``"cuda"`` is an error where it cannot."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one run; None takes those that this process may use."""
    opened: OpenIndex | None = Field(default=None, exclude=True, repr=False)
    """The open index. A field, because LangChain copies a runnable by its fields for each configured call."""

    def __init__(
        self,
        *,
        index: str | Path | None = None,
        retriever: Retriever | None = None,
        embedder: AnyEmbedder | None = None,
        **options: Any,
    ) -> None:
        if retriever is not None:
            options = _options_of(retriever, {"index": index, "embedder": embedder, **options})
        elif index is None:
            raise ConfigError(
                "STMRetriever got neither index= nor retriever=, so there is nothing to search. Pass "
                "STMRetriever(index='index-folder'), or retriever= with an open Retriever."
            )
        else:
            options = {"index": str(index), **options}
        super().__init__(**options)
        settings = Settings(self.index, self.variant, self.device, self.threads)
        if self.opened is None or self.opened.settings != settings:
            lent = embedder if self.opened is None else self.opened.embedder
            self.opened = OpenIndex.open(settings, lent)

    @property
    def retriever(self) -> Retriever:
        """The open index with its embedder."""
        if self.opened is None:
            raise ConfigError(
                "This STMRetriever was made without its constructor. Call STMRetriever(index=...)."
            )
        return self.opened.retriever

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return [to_document(hit) for hit in self.retriever.search(query, **self._chosen(options))]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        hits = await self.retriever.asearch(query, **self._chosen(options))
        return [to_document(hit) for hit in hits]

    def _chosen(self, options: dict[str, Any]) -> dict[str, Any]:
        """What the call says, and for the rest what the constructor said; None says nothing."""
        unknown = sorted(options.keys() - set(_PER_CALL))
        if unknown:
            raise TypeError(
                f"STMRetriever got {', '.join(unknown)} in a call; it takes {', '.join(_PER_CALL)}."
            )
        given = {name: value for name, value in options.items() if value is not None}
        return {name: given.get(name, getattr(self, name)) for name in _PER_CALL}

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return LangSmithRetrieverParams(
            ls_retriever_name="stm",
            ls_vector_store_provider="stm_retriever",
            ls_embedding_provider="stm_retriever",
            ls_embedding_model=self.retriever.embedder.name,
        )


def _options_of(retriever: Retriever, options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    late = sorted(given.keys() & {"index", "embedder", "variant", "device", "threads"})
    if late:
        raise ConfigError(
            f"STMRetriever got a retriever= that is open already ({str(retriever.path)!r}) and also "
            f"{', '.join(late)}, which could no longer take effect. Pass the one or the other."
        )
    index = str(retriever.path)
    return {**given, "index": index, "opened": OpenIndex(Settings(index), retriever, retriever.embedder)}
