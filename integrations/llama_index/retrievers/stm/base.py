"""An index folder as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from llama_index.retrievers.stm.nodes import to_node
from stm_retriever import ConfigError, Hit, Retriever
from stm_retriever.embedder import Vectors
from stm_retriever.foreign import AnyEmbedder
from stm_retriever.rerank import Rerank
from stm_retriever.searching import Mode

Device = Literal["cpu", "cuda", "auto"]

dispatcher = get_dispatcher(__name__)


class STMRetriever(BaseRetriever):
    """Search an index folder; read only, so that other processes may write to it meanwhile.

    Each node that comes back is a ``TextNode`` with the document's id, text and metadata and, for a part of a
    longer document, its place in it and the parent's id as ``ref_doc_id``. The score is the cosine
    similarity, higher is better (with another ``mode`` or a reranker see ``Hit``). What LlamaIndex's
    ``STMVectorStore`` stored comes back as the node that it was. A query bundle's ``embedding`` is used if it
    is there, and so are its ``custom_embedding_strs`` (their mean, as LlamaIndex's own retrievers do).

    Example:
        .. code-block:: python

            retriever = STMRetriever(index="runs/demo/index", similarity_top_k=4)
            engine = RetrieverQueryEngine.from_args(retriever, llm=llm)

    Args:
        index: The index folder.
        similarity_top_k: How many nodes come back.
        retriever: An open ``Retriever`` instead of ``index``.
        embedder: A loaded model to encode queries with; None loads the one that the index was made with.
        variant: ONNX variant of the model; None takes the one that the index was made with.
        device: Where the model runs; ``"cuda"`` is an error where it cannot.
        threads: CPU threads of one run; None takes those that this process may use.
        where: A metadata filter (``stm_retriever.filters``); only nodes that it takes are searched.
        mode: ``"dense"`` by vector, ``"lexical"`` by words, ``"hybrid"`` by both.
        rerank: A function (query, texts) -> scores that orders the best anew, such as a ``CrossEncoder``.
        min_score: Only nodes with at least this score.
        group_by_parent: At most one node, the best, of each parent.
        callback_manager: LlamaIndex's callbacks.
        object_map: As in LlamaIndex's retrievers.
        objects: As in LlamaIndex's retrievers.
        verbose: As in LlamaIndex's retrievers.

    Raises:
        IndexFolderError: If the index is missing, damaged, or of a newer schema.
        ModelFolderError: If the model that it was made with is gone.
        ArtifactMismatchError: If ``embedder`` is another model than the index was made with.
        ConfigError: If ``similarity_top_k`` is below 1, or arguments contradict each other.
    """

    def __init__(
        self,
        index: str | Path | None = None,
        *,
        similarity_top_k: int = 4,
        retriever: Retriever | None = None,
        embedder: AnyEmbedder | None = None,
        variant: str | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        where: Mapping[str, Any] | None = None,
        mode: Mode = "dense",
        rerank: Rerank | None = None,
        min_score: float | None = None,
        group_by_parent: bool = False,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        if similarity_top_k < 1:
            raise ConfigError(
                f"similarity_top_k={similarity_top_k}: a search gives at least one node. Pass 1 or more."
            )
        self.similarity_top_k = similarity_top_k
        self.group_by_parent = group_by_parent
        self.where, self.mode, self.rerank, self.min_score = where, mode, rerank, min_score
        loading = {
            "variant": variant,
            "device": None if device == "cpu" else device,
            "threads": threads,
        }
        if retriever is not None:
            _refuse_options("retriever=", {"index": index, "embedder": embedder, **loading})
            self._retriever = retriever
        elif index is None:
            raise ConfigError(
                "STMRetriever got neither index= nor retriever=, so there is nothing to search. Pass "
                "STMRetriever(index='index-folder'), or retriever= with an open Retriever."
            )
        elif embedder is not None:
            _refuse_options("embedder=", loading)
            self._retriever = Retriever.open(index, embedder=embedder, read_only=True)
        else:
            self._retriever = Retriever.open(
                index, variant=variant, device=device, threads=threads, read_only=True
            )
        super().__init__(
            callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose
        )

    @property
    def retriever(self) -> Retriever:
        """The open index with its embedder."""
        return self._retriever

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [to_node(hit) for hit in self._search(query_bundle)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [to_node(hit) for hit in await asyncio.to_thread(self._search, query_bundle)]

    def _search(self, bundle: QueryBundle) -> list[Hit]:
        options: dict[str, Any] = {
            "where": self.where,
            "mode": self.mode,
            "rerank": self.rerank,
            "min_score": self.min_score,
            "group_by_parent": self.group_by_parent,
        }
        if self.mode == "lexical":
            return self._retriever.search(bundle.query_str, self.similarity_top_k, **options)
        vector = self._query_vector(bundle)
        return self._retriever.search_vector(vector, self.similarity_top_k, text=bundle.query_str, **options)

    def _query_vector(self, bundle: QueryBundle) -> Vectors:
        if bundle.embedding is not None:
            return np.asarray(bundle.embedding, dtype=np.float32)
        texts = bundle.custom_embedding_strs or [bundle.query_str]
        embedder = self._retriever.embedder
        model = {"model_name": embedder.name, "fingerprint": embedder.fingerprint}
        dispatcher.event(EmbeddingStartEvent(model_dict=model))
        vectors = embedder.encode_query(texts)
        dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=vectors.tolist()))
        mean: Vectors = vectors.mean(axis=0)
        return mean


def _refuse_options(loaded: str, options: dict[str, Any]) -> None:
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ConfigError(
            f"STMRetriever got {loaded}, which is open already, and also {', '.join(given)}, which could no "
            "longer take effect. Pass the one or the other."
        )
