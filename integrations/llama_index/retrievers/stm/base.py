"""An index folder as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle

from llama_index.retrievers.stm.nodes import to_node
from stm_retriever import ConfigError, Embedder, Hit, Retriever

Device = Literal["cpu", "cuda", "auto"]


class STMRetriever(BaseRetriever):
    """Search an index folder; read only, so that other processes may write to it meanwhile.

    Each node that comes back is a ``TextNode`` with the document's id, text and metadata and, for a part of a
    longer document, its place in it and the parent's id as ``ref_doc_id``. The score is the cosine
    similarity, higher is better. A query bundle's ``embedding`` is used if it is there, and so are its
    ``custom_embedding_strs`` (their mean, as LlamaIndex's own retrievers do).

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
        embedder: Embedder | None = None,
        variant: str | None = None,
        device: Device = "cpu",
        threads: int | None = None,
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
            self._retriever = _open_with_its_model(index, variant, device, threads)
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
        if bundle.embedding is not None:
            vector = np.asarray(bundle.embedding, dtype=np.float32)
        elif bundle.custom_embedding_strs:
            vector = self._retriever.embedder.encode_query(bundle.custom_embedding_strs).mean(axis=0)
        else:
            return self._retriever.search(
                bundle.query_str, self.similarity_top_k, group_by_parent=self.group_by_parent
            )
        return self._retriever.search_vector(
            vector, self.similarity_top_k, group_by_parent=self.group_by_parent
        )


def _open_with_its_model(
    index: str | Path, variant: str | None, device: Device, threads: int | None
) -> Retriever:
    opened = Retriever.open(index, variant=variant, read_only=True)
    if device == "cpu" and threads is None:
        return opened
    # Only the index knows where its model lies, so that it is found first and loaded as asked for then.
    found = opened.embedder
    opened.close()
    model = Embedder.load(found.path, variant=found.variant, device=device, threads=threads)
    return Retriever.open(index, embedder=model, read_only=True)


def _refuse_options(loaded: str, options: dict[str, Any]) -> None:
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ConfigError(
            f"STMRetriever got {loaded}, which is open already, and also {', '.join(given)}, which could no "
            "longer take effect. Pass the one or the other."
        )
