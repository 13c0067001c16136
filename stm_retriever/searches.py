"""The reading half of a retriever: every way to ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stm_retriever.embedder import Vectors
from stm_retriever.errors import ConfigError
from stm_retriever.foreign import AnyEmbedder
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.rows import check_ids
from stm_retriever.rerank import Rerank
from stm_retriever.searching import Fusion, Mode, Plan, check_k, make_plan, run_mmr, run_plan
from stm_retriever.tokenization import check_texts
from stm_retriever.types import Document, Hit

Where = Mapping[str, Any]
"""A metadata filter, for instance ``{"year": {"$gte": 2020}, "lang": {"$in": ["en", "de"]}}``."""


class Searches:
    """What a :class:`~stm_retriever.retriever.Retriever` can be asked."""

    def __init__(self, index: IndexFolder, embedder: AnyEmbedder) -> None:
        self._index = index
        self._embedder = embedder

    def get(self, ids: Iterable[str]) -> list[Document | None]:
        """Return the documents with these ids, in that order; None where there is none."""
        return self._index.get(check_ids(ids))

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """Return stored vectors, float32 (n, dimension) at length 1, of ids that are there."""
        return self._index.vectors_of(check_ids(ids))

    def count(self, *, where: Where | None = None) -> int:
        """Count the documents, or those that a metadata filter takes."""
        return self._index.count(where=where)

    def documents(self, *, where: Where | None = None) -> Iterator[Document]:
        """Yield every document, or those that a metadata filter takes, in order of insertion.

        A replaced document counts as inserted anew.
        """
        return self._index.documents(where=where)

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: Where | None = None,
        mode: Mode = "dense",
        rerank: Rerank | None = None,
        min_score: float | None = None,
        group_by_parent: bool = False,
        fusion: Fusion = "rrf",
        alpha: float = 0.5,
        fetch_k: int | None = None,
    ) -> list[Hit]:
        """Find the k documents that fit a query best.

        Args:
            query: The question; the query prompt is put before it.
            k: How many hits, >= 1; fewer come back from a smaller index.
            where: A metadata filter; only documents that it takes are searched.
            mode: ``"dense"`` by vector, ``"lexical"`` by words (BM25), ``"hybrid"`` by both.
            rerank: A function (query, texts) -> scores, for instance a ``CrossEncoder``, that orders the
                ``fetch_k`` best anew.
            min_score: Only hits with at least this score, whatever a score is in this mode (see ``Hit``).
            group_by_parent: At most one hit, the best, of each parent. With ``rerank``, fewer than k may
                come back.
            fusion: How hybrid makes one ranking of two: ``"rrf"`` by ranks, ``"weighted"`` by scores.
            alpha: Share of the dense score in ``"weighted"``, from 0 (words alone) to 1 (vectors alone).
            fetch_k: How many candidates are reranked, and at least fused; None takes 50 or 2 k.

        Returns:
            Hits, best first, equal ones in order of insertion.

        Raises:
            ConfigError: If an argument cannot be used.
            DataError: If the query is empty.
        """
        plan = make_plan(
            k,
            where=where,
            mode=mode,
            rerank=rerank,
            min_score=min_score,
            group_by_parent=group_by_parent,
            fusion=fusion,
            alpha=alpha,
            fetch_k=fetch_k,
        )
        return self._run([query], plan)[0]

    def search_batch(self, queries: Sequence[str], k: int = 10, **options: Any) -> list[list[Hit]]:
        """Search for several queries at once, encoded and searched together.

        Args:
            queries: n queries.
            k: How many hits per query.
            options: As for :meth:`search`.

        Returns:
            n lists of hits.
        """
        return self._run(queries, make_plan(k, **options))

    def search_vector(
        self, vector: npt.ArrayLike, k: int = 10, *, text: str | None = None, **options: Any
    ) -> list[Hit]:
        """Search with a query vector that is there already, made by this model's ``encode_query``.

        Args:
            vector: (dimension,); its length does not matter.
            k: How many hits, >= 1.
            text: The query itself, which hybrid search and rerankers need.
            options: As for :meth:`search`.

        Raises:
            ConfigError: If an argument cannot be used, or the vector has another shape.
            DataError: If the vector is not finite or zero.
        """
        plan = make_plan(k, **options)
        row = _one_axis(vector)[None, :]
        return run_plan(self._index, plan, vectors=row, texts=None if text is None else [text])[0]

    def mmr_search(
        self,
        query: str,
        k: int = 4,
        *,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        where: Where | None = None,
    ) -> list[Hit]:
        """Find documents that are near the query and unlike each other (maximal marginal relevance).

        Args:
            query: The question.
            k: How many hits.
            fetch_k: How many of the nearest to choose from.
            lambda_mult: 1 for the nearest alone, 0 for the most different.
            where: A metadata filter.

        Returns:
            Hits in the order of choice; their scores are cosine similarities to the query.

        Raises:
            ConfigError: If an argument cannot be used.
            DataError: If the query is empty.
        """
        vector = self._embedder.encode_query([query])[0]
        return self.mmr_search_vector(vector, k, fetch_k=fetch_k, lambda_mult=lambda_mult, where=where)

    def mmr_search_vector(
        self,
        vector: npt.ArrayLike,
        k: int = 4,
        *,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        where: Where | None = None,
    ) -> list[Hit]:
        """Do what :meth:`mmr_search` does, with a query vector that is there already."""
        return run_mmr(
            self._index,
            _one_axis(vector),
            k=check_k(k),
            fetch_k=check_k(fetch_k, "fetch_k"),
            lambda_mult=lambda_mult,
            where=where,
        )

    # Beside an event loop ----------------------------------------------------------------------------------

    async def asearch(self, query: str, k: int = 10, **options: Any) -> list[Hit]:
        """Same as :meth:`search`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.search, query, k, **options)

    async def asearch_batch(self, queries: Sequence[str], k: int = 10, **options: Any) -> list[list[Hit]]:
        """Same as :meth:`search_batch`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.search_batch, queries, k, **options)

    async def asearch_vector(self, vector: npt.ArrayLike, k: int = 10, **options: Any) -> list[Hit]:
        """Same as :meth:`search_vector`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.search_vector, vector, k, **options)

    async def ammr_search(self, query: str, k: int = 4, **options: Any) -> list[Hit]:
        """Same as :meth:`mmr_search`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.mmr_search, query, k, **options)

    # -------------------------------------------------------------------------------------------------------

    def _run(self, queries: Sequence[str], plan: Plan) -> list[list[Hit]]:
        texts = check_texts(queries, "query")
        vectors = None if plan.mode == "lexical" else self._embedder.encode_query(texts)
        return run_plan(self._index, plan, vectors=vectors, texts=texts) if texts else []


def _one_axis(vector: npt.ArrayLike) -> Vectors:
    array = np.asarray(vector, dtype=np.float32)
    if array.ndim != 1:
        raise ConfigError(
            f"Got a vector of shape {array.shape}; a query vector has one axis. Pass row by row."
        )
    return array
