"""An index folder as a LlamaIndex vector store."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from llama_index.retrievers.stm.nodes import stored_node, to_document
from llama_index.vector_stores.stm.filters import all_of, ids_where, to_where
from llama_index.vector_stores.stm.foreign import embedder_of
from stm_retriever import ConfigError, DataError, Hit, Retriever
from stm_retriever.atomic_write import write_bytes_atomically
from stm_retriever.retriever import open_or_create, refuse_late_settings

_POINTER = "stm_index_folder"
_LEXICAL = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)


class STMVectorStore(BasePydanticVectorStore):
    """Nodes in an index folder: on disk with every call, searched by vector, by words, or by both.

    Query modes: ``DEFAULT`` (cosine), ``SPARSE`` and ``TEXT_SEARCH`` (BM25), ``HYBRID`` (fused by ranks, or
    by ``alpha`` if it is given), ``MMR``. Metadata filters go into the search. Similarities are the scores
    of ``Hit``. The asynchronous methods work in threads, so that the event loop goes on.

    Example:
        .. code-block:: python

            store = STMVectorStore("index-folder", embed_model)
            context = StorageContext.from_defaults(vector_store=store)
            index = VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)

    Args:
        index: The index folder; made if nothing is there.
        embed_model: The model that nodes and queries are embedded with, ours or any other; the index is
            known by it. None takes the one that the index was made with, if that is a retriever folder.
        retriever: An open ``Retriever`` instead of both.
        kind: The kind of index to make.
        embedder_id: What to know somebody else's model by; None takes its class and where it puts two probe
            texts.
        read_only: Refuse to add and delete.

    Raises:
        IndexFolderError: If the index is damaged, or is to be read only and not there.
        ArtifactMismatchError: If the index was made with another model.
        ConfigError: If arguments contradict each other.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    stores_text: bool = True
    is_embedding_query: bool = True
    index: str = Field(default="", description="The index folder.")

    _retriever: Retriever = PrivateAttr()

    def __init__(
        self,
        index: str | Path | None = None,
        embed_model: BaseEmbedding | None = None,
        *,
        retriever: Retriever | None = None,
        kind: str | None = None,
        embedder_id: str | None = None,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        if retriever is not None:
            given = {"index": index, "embed_model": embed_model, "kind": kind, "embedder_id": embedder_id}
            refuse_late_settings(retriever, given, read_only=read_only)
        elif index is None:
            raise ConfigError(
                "STMVectorStore got neither index= nor retriever=. Pass STMVectorStore('index-folder', "
                "embed_model), or retriever= with an open Retriever."
            )
        else:
            embedder = None if embed_model is None else embedder_of(embed_model, embedder_id)
            retriever = open_or_create(index, embedder, kind, read_only)
        super().__init__(index=str(retriever.path), **options)
        self._retriever = retriever

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return "STMVectorStore"

    @property
    def client(self) -> Retriever:
        """The open index with its embedder."""
        return self._retriever

    @property
    def retriever(self) -> Retriever:
        """The open index with its embedder."""
        return self._retriever

    def close(self) -> None:
        """Save a snapshot, so that the next open is fast, and let other writers in."""
        self._retriever.close()

    def __enter__(self) -> STMVectorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing -----------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Store nodes with their embeddings, in one transaction; those whose id is there are replaced.

        Returns:
            The nodes' ids.

        Raises:
            ValueError: If a node has no embedding.
            DataError: If a node's text is empty, an id comes twice, or metadata is not JSON.
            ConfigError: If embeddings do not have the index's dimension.
            IndexFolderError: If another process writes to this index, or the disk is full.
        """
        if nodes:
            vectors = [node.get_embedding() for node in nodes]
            self._retriever.add_vectors([to_document(node) for node in nodes], vectors)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document, in one transaction."""
        self._retriever.delete_where({"$parent": ref_doc_id})

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes that have one of the ids and pass the filters, in one transaction.

        Raises:
            ConfigError: If neither is given; :meth:`clear` deletes everything.
        """
        where = all_of(ids_where(node_ids), to_where(filters))
        if where is None:
            raise ConfigError(
                "delete_nodes() got neither node_ids nor filters; should everything go? Then call clear()."
            )
        self._retriever.delete_where(where)

    def clear(self) -> None:
        """Delete everything, in one transaction."""
        self._retriever.clear()

    # Reading -----------------------------------------------------------------------------------------------

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that have one of the ids and pass the filters; unknown ids are left out."""
        if node_ids is not None and filters is None:
            return [stored_node(found) for found in self._retriever.get(node_ids) if found is not None]
        where = all_of(ids_where(node_ids), to_where(filters))
        return [stored_node(found) for found in self._retriever.documents(where=where)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search.

        Args:
            query: The query; ``MMR`` takes ``mmr_threshold`` (1: the nearest alone) from it or from kwargs.
            kwargs: ``mmr_threshold``, ``mmr_prefetch_k``, ``mmr_prefetch_factor`` (4), and what
                ``Retriever.search`` takes: ``rerank``, ``min_score``, ``group_by_parent``, ``fetch_k``.

        Raises:
            ConfigError: If the mode or a filter has no counterpart here, or the query lacks vector or text.
        """
        # VectorStoreIndex passes an empty list where it means all.
        ids = ids_where(query.node_ids or None, query.doc_ids or None)
        where = all_of(ids, to_where(query.filters))
        if query.mode == VectorStoreQueryMode.MMR:
            hits = self._mmr(query, where, kwargs)
        elif query.mode in _LEXICAL:
            k = query.sparse_top_k or query.similarity_top_k
            hits = self._retriever.search(_text(query), k, where=where, mode="lexical", **kwargs)
        else:
            options = _dense_options(query)
            hits = self._retriever.search_vector(
                _vector(query), text=query.query_str, where=where, **options, **kwargs
            )
        return VectorStoreQueryResult(
            nodes=[stored_node(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def _mmr(
        self, query: VectorStoreQuery, where: dict[str, Any] | None, options: dict[str, Any]
    ) -> list[Hit]:
        threshold = options.pop("mmr_threshold", query.mmr_threshold)
        factor = options.pop("mmr_prefetch_factor", None) or 4
        fetch = options.pop("mmr_prefetch_k", None) or int(factor * query.similarity_top_k)
        return self._retriever.mmr_search_vector(
            _vector(query),
            query.similarity_top_k,
            fetch_k=fetch,
            lambda_mult=0.5 if threshold is None else threshold,
            where=where,
            **options,
        )

    # Beside an event loop ----------------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Same as :meth:`add`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Same as :meth:`delete`, in a thread, so that the event loop goes on."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Same as :meth:`delete_nodes`, in a thread, so that the event loop goes on."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """Same as :meth:`clear`, in a thread, so that the event loop goes on."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Same as :meth:`get_nodes`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Same as :meth:`query`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    # StorageContext ----------------------------------------------------------------------------------------

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Save a snapshot and, at ``persist_path``, a file that says where the index folder is.

        The nodes are on disk already. :meth:`from_persist_dir` reads the file.

        Raises:
            ConfigError: If ``fs`` is not this machine's; an index folder cannot lie elsewhere.
        """
        if fs is not None and "file" not in np.atleast_1d(fs.protocol):
            raise ConfigError(
                f"persist() got a {type(fs).__name__}, but the index {self.index!r} lies on this machine. "
                "Persist to a local folder, and copy the index folder along."
            )
        self._retriever.snapshot()
        target = Path(persist_path).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A list, since LlamaIndex's SimpleVectorStore takes any object for an empty store of its own.
        content = [_POINTER, os.path.relpath(self.index, target.parent)]
        write_bytes_atomically(target, json.dumps(content).encode("utf-8"))

    @classmethod
    def from_persist_path(
        cls, persist_path: str, embed_model: BaseEmbedding | None = None, **options: Any
    ) -> STMVectorStore:
        """Open the index that a persisted file names.

        Args:
            persist_path: As it was given to :meth:`persist`.
            embed_model: As in the constructor.
            options: As in the constructor.

        Raises:
            DataError: If the file is missing or no such file.
        """
        path = Path(persist_path).absolute()
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{str(path)!r} cannot be read: {error}. Check the path.") from error
        if not (isinstance(content, list) and len(content) == 2 and content[0] == _POINTER):
            raise DataError(
                f"{str(path)!r} was not written by STMVectorStore.persist(), maybe by another vector store. "
                "Check the path."
            )
        return cls(path.parent / str(content[1]), embed_model, **options)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        embed_model: BaseEmbedding | None = None,
        *,
        namespace: str = "default",
        **options: Any,
    ) -> STMVectorStore:
        """Open the index of a persisted storage context.

        Pass what comes back to ``StorageContext.from_defaults(persist_dir=..., vector_store=...)``.
        """
        path = Path(persist_dir) / f"{namespace}__{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(str(path), embed_model, **options)


def _dense_options(query: VectorStoreQuery) -> dict[str, Any]:
    if query.mode == VectorStoreQueryMode.DEFAULT:
        return {"k": query.similarity_top_k}
    if query.mode != VectorStoreQueryMode.HYBRID:
        raise ConfigError(
            f"The query mode {query.mode.value!r} has no counterpart in an index folder. Take DEFAULT, "
            "SPARSE, TEXT_SEARCH, HYBRID or MMR."
        )
    _text(query)
    k = query.hybrid_top_k or query.similarity_top_k
    if query.alpha is None:
        return {"k": k, "mode": "hybrid"}
    return {"k": k, "mode": "hybrid", "fusion": "weighted", "alpha": query.alpha}


def _vector(query: VectorStoreQuery) -> list[float]:
    if query.query_embedding is None:
        raise ConfigError(f"A query in mode {query.mode.value!r} needs query_embedding, and there is none.")
    return query.query_embedding


def _text(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise ConfigError(f"A query in mode {query.mode.value!r} needs query_str, and there is none.")
    return query.query_str
