"""An index folder as a LangChain vector store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_stm.documents import from_texts, stored_document, to_document
from langchain_stm.foreign import embedder_of, embeddings_of
from stm_retriever import ConfigError, Hit, Retriever
from stm_retriever.foreign import AnyEmbedder
from stm_retriever.retriever import open_or_create, refuse_late_settings
from stm_retriever.searching import check_k, relevance


class STMVectorStore(VectorStore):
    """Documents in an index folder: on disk with every call, searched by vector, by words, or by both.

    Adding an id again replaces its document; what has not changed is not embedded again. ``filter`` is a
    metadata filter such as ``{"year": {"$gte": 2020}, "lang": {"$in": ["en", "de"]}}`` (``stm_retriever.
    filters`` has all of it). Scores are similarities, higher is better. Every search takes what
    ``Retriever.search`` takes: ``mode="hybrid"``, ``rerank=``, ``min_score=``, ``group_by_parent=`` ...

    The asynchronous methods work in threads, so that the event loop goes on.

    Example:
        .. code-block:: python

            store = STMVectorStore("index-folder", STMEmbeddings(model="runs/demo/retriever"))
            store.add_texts(["..."], metadatas=[{"year": 2024}], ids=["a"])
            retriever = store.as_retriever(search_type="mmr", search_kwargs={"filter": {"year": 2024}})

    Args:
        index: The index folder; made if nothing is there. None makes one that is removed with the store.
        embedding: Ours or any other LangChain embeddings; None takes the model that the index was made with.
        retriever: An open ``Retriever`` instead of both.
        kind: The kind of index to make.
        embedder_id: What to know somebody else's embeddings by; None takes their class and where they put two
            probe texts.
        read_only: Refuse to add and delete.

    Raises:
        IndexFolderError: If the index is damaged, or is to be read only and not there.
        ArtifactMismatchError: If the index was made with other embeddings.
        ConfigError: If arguments contradict each other.
    """

    def __init__(
        self,
        index: str | Path | None = None,
        embedding: Embeddings | None = None,
        *,
        retriever: Retriever | None = None,
        kind: str | None = None,
        embedder_id: str | None = None,
        read_only: bool = False,
    ) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if retriever is not None:
            given = {"index": index, "embedding": embedding, "kind": kind, "embedder_id": embedder_id}
            refuse_late_settings(retriever, given, read_only=read_only)
            self._retriever = retriever
        else:
            embedder = None if embedding is None else embedder_of(embedding, embedder_id)
            self._retriever = open_or_create(self._place(index, embedder), embedder, kind, read_only)
        self._embedding = embedding

    @property
    def retriever(self) -> Retriever:
        """The open index with its embedder."""
        return self._retriever

    @property
    def embeddings(self) -> Embeddings:
        """What embeds queries and documents."""
        if self._embedding is None:
            self._embedding = embeddings_of(self._retriever.embedder)
        return self._embedding

    # Writing -----------------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and store texts, in one transaction; those whose id is there already are replaced.

        Args:
            texts: n texts.
            metadatas: A dict of JSON values per text.
            ids: An id per text; None, for all or for one, makes a random one.
            batch_size: Texts per transaction (LangChain's indexing API passes it); None takes one for all.
            kwargs: None is known.

        Returns:
            The ids.

        Raises:
            ConfigError: If the numbers do not fit, or on an unknown option.
            DataError: If a text is empty, an id comes twice, or metadata is not JSON.
            IndexFolderError: If another process writes to this index, or the disk is full.
        """
        _refuse(kwargs, "add_texts")
        documents = from_texts(texts, metadatas, ids)
        step = max(len(documents), 1) if batch_size is None else check_k(batch_size, "batch_size")
        for start in range(0, len(documents), step):
            self._retriever.add(documents[start : start + step])
        return [document.id for document in documents]

    def delete(
        self, ids: list[str] | None = None, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> bool:
        """Delete documents by id or by filter, in one transaction; unknown ids are ignored.

        As LangChain has it, a call with neither deletes everything.

        Returns:
            True.
        """
        _refuse(kwargs, "delete")
        if ids is not None and filter is not None:
            raise ConfigError("delete() got ids and filter; which one counts? Pass the one or the other.")
        if ids is not None:
            self._retriever.delete(ids)
        elif filter is not None:
            self._retriever.delete_where(filter)
        else:
            self._retriever.clear()
        return True

    def close(self) -> None:
        """Save a snapshot, so that the next open is fast, and let other writers in."""
        self._retriever.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> STMVectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading -----------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in that order; unknown ids are left out."""
        return [stored_document(found) for found in self._retriever.get(ids) if found is not None]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents that fit a query best.

        Args:
            query: The question.
            k: How many.
            filter: A metadata filter.
            kwargs: As for ``Retriever.search``: ``mode``, ``rerank``, ``min_score``, ``group_by_parent``,
                ``fusion``, ``alpha``, ``fetch_k``.
        """
        return _documents(self._retriever.search(query, k, where=filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Do what :meth:`similarity_search` does, with scores: cosines, unless ``mode`` says otherwise."""
        hits = self._retriever.search(query, k, where=filter, **kwargs)
        return [(to_document(hit, with_score=False), hit.score) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents nearest to a query's vector."""
        return _documents(self._retriever.search_vector(embedding, k, where=filter, **kwargs))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Do what :meth:`similarity_search_by_vector` does, with scores."""
        hits = self._retriever.search_vector(embedding, k, where=filter, **kwargs)
        return [(to_document(hit, with_score=False), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents near the query and unlike each other, chosen from the ``fetch_k`` nearest."""
        _refuse(kwargs, "max_marginal_relevance_search")
        return _documents(
            self._retriever.mmr_search(query, k, fetch_k=fetch_k, lambda_mult=lambda_mult, where=filter)
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Do what :meth:`max_marginal_relevance_search` does, with a query's vector."""
        _refuse(kwargs, "max_marginal_relevance_search_by_vector")
        return _documents(
            self._retriever.mmr_search_vector(
                embedding, k, fetch_k=fetch_k, lambda_mult=lambda_mult, where=filter
            )
        )

    def _select_relevance_score_fn(self) -> Any:
        return relevance

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _check_cosine(kwargs)
        return super()._similarity_search_with_relevance_scores(query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _check_cosine(kwargs)
        return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    # Making ------------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: str | Path | None = None,
        kind: str | None = None,
        embedder_id: str | None = None,
        **kwargs: Any,
    ) -> STMVectorStore:
        """Make a store, or open the one at ``index``, and add texts."""
        _refuse(kwargs, "from_texts")
        store = cls(index, embedding, kind=kind, embedder_id=embedder_id)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _place(self, index: str | Path | None, embedder: AnyEmbedder | None) -> str | Path:
        if index is not None:
            return index
        if embedder is None:
            raise ConfigError(
                "STMVectorStore got neither index= nor embedding= nor retriever=. Pass "
                "STMVectorStore('index-folder', STMEmbeddings(model='folder'))."
            )
        self._temporary = tempfile.TemporaryDirectory(prefix="stm-index-", ignore_cleanup_errors=True)
        return Path(self._temporary.name) / "index"


def _documents(hits: Iterable[Hit]) -> list[Document]:
    return [to_document(hit, with_score=False) for hit in hits]


def _check_cosine(options: dict[str, Any]) -> None:
    if options.get("mode", "dense") != "dense" or options.get("rerank") is not None:
        raise ConfigError(
            "Relevance in [0, 1] is made of the cosine similarity, and a lexical, hybrid or reranked score "
            "is none. Take min_score= with similarity_search_with_score, or mode='dense'."
        )


def _refuse(options: dict[str, Any], method: str) -> None:
    if options:
        raise ConfigError(
            f"STMVectorStore.{method} got {', '.join(sorted(options))}, which it does not know, so it would "
            "have no effect. Check the spelling."
        )
