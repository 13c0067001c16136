"""The ways to search: by vector, by words, by both, reranked, grouped, cut at a score."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from stm_retriever.embedder import Vectors
from stm_retriever.errors import ConfigError, DataError
from stm_retriever.fusion import reciprocal_ranks, weighted_scores
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.ranking import unit_rows
from stm_retriever.mmr import maximal_marginal_relevance
from stm_retriever.rerank import Rerank, rerank_scores
from stm_retriever.types import Document, Hit

Mode = Literal["dense", "lexical", "hybrid"]
"""By vector, by words (BM25), or by both."""
Fusion = Literal["rrf", "weighted"]
"""How hybrid makes one ranking of two."""
Found = list[tuple[Document, float]]

_DEPTH = 50  # a hybrid search fuses at least so many of each; a reranker reads so many by default


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search is asked for; :func:`make_plan` checks it."""

    k: int
    where: Mapping[str, Any] | None
    mode: Mode
    rerank: Rerank | None
    min_score: float | None
    group_by_parent: bool
    fusion: Fusion
    alpha: float
    fetch_k: int

    @property
    def needs_text(self) -> str | None:
        """What of it needs the query's text, if anything does."""
        if self.mode != "dense":
            return f"mode={self.mode!r}"
        return None if self.rerank is None else "rerank="


def make_plan(
    k: int,
    *,
    where: Mapping[str, Any] | None = None,
    mode: str = "dense",
    rerank: Rerank | None = None,
    min_score: float | None = None,
    group_by_parent: bool = False,
    fusion: str = "rrf",
    alpha: float = 0.5,
    fetch_k: int | None = None,
) -> Plan:
    """Check the arguments of a search.

    Raises:
        ConfigError: If one cannot be used; the message names it.
    """
    number = check_k(k)
    if mode not in get_args(Mode):
        raise ConfigError(f"mode={mode!r} is no way to search. Take 'dense', 'lexical' or 'hybrid'.")
    if fusion not in get_args(Fusion):
        raise ConfigError(f"fusion={fusion!r} is no way to fuse. Take 'rrf' or 'weighted'.")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha={alpha!r} is the dense score's share. Pass a number from 0 to 1.")
    if min_score is not None and math.isnan(min_score):
        raise ConfigError("min_score is NaN, which no score reaches. Pass a number, or None for all hits.")
    if rerank is not None and not callable(rerank):
        raise ConfigError(
            f"rerank={rerank!r:.60} is a {type(rerank).__name__}, which cannot be called. Pass a function "
            "(query, texts) -> scores, or CrossEncoder.load(folder)."
        )
    depth = max(_DEPTH, 2 * number) if fetch_k is None else max(check_k(fetch_k, "fetch_k"), number)
    return Plan(
        number,
        where,
        mode,  # type: ignore[arg-type]  # checked above
        rerank,
        min_score,
        group_by_parent,
        fusion,  # type: ignore[arg-type]  # checked above
        float(alpha),
        depth,
    )


def check_k(k: int, name: str = "k") -> int:
    """Return k as an int >= 1.

    Raises:
        ConfigError: If it is none.
    """
    try:
        number = operator.index(k)
    except TypeError as error:
        raise ConfigError(
            f"{name}={k!r} is a {type(k).__name__}, not a whole number. Pass 1 or more."
        ) from error
    if isinstance(k, bool) or number < 1:
        raise ConfigError(f"{name}={k!r} counts nothing. Pass 1 or more.")
    return number


def relevance(cosine: float) -> float:
    """Bring a cosine similarity to [0, 1], where 1 is the same direction: ``(1 + cosine) / 2``."""
    return min(1.0, max(0.0, (1.0 + cosine) / 2.0))


def run_plan(
    index: IndexFolder, plan: Plan, *, vectors: Vectors | None, texts: Sequence[str] | None
) -> list[list[Hit]]:
    """Search for several queries at once.

    Args:
        index: Where.
        plan: How.
        vectors: (n, dimension), the queries' vectors; None for a lexical search.
        texts: The n queries; None is allowed where the plan does not need them.

    Raises:
        ConfigError: If the plan needs texts and there are none.
    """
    if texts is None and plan.needs_text is not None:
        raise ConfigError(
            f"{plan.needs_text} needs the query's words, but only its vector was given. Pass text=."
        )
    search = _Search(index, plan, vectors, texts)
    depth = plan.fetch_k if plan.rerank is not None else plan.k
    if plan.group_by_parent:
        depth = max(depth, 4 * plan.k)
    ranked = search.ranked(depth)
    if plan.group_by_parent:
        ranked = [search.one_per_parent(place, found, depth) for place, found in enumerate(ranked)]
    return [_hits(found, plan) for found in ranked]


def run_mmr(
    index: IndexFolder,
    vector: Vectors,
    *,
    k: int,
    fetch_k: int,
    lambda_mult: float,
    where: Mapping[str, Any] | None,
) -> list[Hit]:
    """Choose k of the ``fetch_k`` nearest by maximal marginal relevance; scores stay cosines."""
    found = dense(index, vector[None, :], max(k, fetch_k), where)[0]
    found, stored = _with_vectors(index, found)
    chosen = maximal_marginal_relevance(vector, stored, k=k, lambda_mult=lambda_mult)
    return [as_hit(*found[place]) for place in chosen]


def dense(index: IndexFolder, vectors: Vectors, k: int, where: Mapping[str, Any] | None) -> list[Found]:
    """Search by vector."""
    return index.search(vectors, k, where=where)


class _Search:
    """One plan for n queries."""

    def __init__(
        self, index: IndexFolder, plan: Plan, vectors: Vectors | None, texts: Sequence[str] | None
    ) -> None:
        self._index = index
        self._plan = plan
        self._vectors = vectors
        self._texts = list(texts) if texts is not None else None

    def ranked(self, depth: int) -> list[Found]:
        """The ``depth`` best of each query, reranked if asked for; fewer where there are no more."""
        plan = self._plan
        if plan.mode == "dense":
            found = dense(self._index, self._queries(), depth, plan.where)
        elif plan.mode == "lexical":
            found = self._index.lexical(self._texts or [], depth, where=plan.where)
        else:
            found = self._hybrid(depth)
        if plan.rerank is None:
            return found
        return [self._reranked(place, row) for place, row in enumerate(found)]

    def one_per_parent(self, place: int, found: Found, depth: int) -> Found:
        """The best document of each parent; looks deeper until there are k, or no more documents.

        A reranker reads no more than it was given at first: each further text costs a run of its model.
        """
        search = self._only(place)
        while True:
            best: dict[str, tuple[Document, float]] = {}
            for document, score in found:
                parent = document.id if document.parent_id is None else document.parent_id
                best.setdefault(parent, (document, score))
            if len(best) >= self._plan.k or len(found) < depth or self._plan.rerank is not None:
                return list(best.values())
            depth *= 4
            found = search.ranked(depth)[0]

    def _hybrid(self, depth: int) -> list[Found]:
        plan = self._plan
        each = max(depth, _DEPTH)
        queries = self._queries()
        by_vector = dense(self._index, queries, each, plan.where)
        by_words = self._index.lexical(self._texts or [], each, where=plan.where)
        fuse = self._fused_ranks if plan.fusion == "rrf" else self._fused_scores
        fused = []
        for query, near, matching in zip(queries, by_vector, by_words, strict=True):
            documents = {document.id: document for document, _ in [*matching, *near]}
            scores = fuse(query, near, matching)
            fused.append([(documents[name], score) for name, score in list(scores.items())[:depth]])
        return fused

    def _fused_ranks(self, query: Vectors, near: Found, matching: Found) -> dict[str, float]:
        return reciprocal_ranks([[document.id for document, _ in row] for row in (near, matching)])

    def _fused_scores(self, query: Vectors, near: Found, matching: Found) -> dict[str, float]:
        cosines = {document.id: score for document, score in near}
        missing = [pair for pair in matching if pair[0].id not in cosines]
        if missing:
            # What only the words found has a cosine too, and it may be nearly as good as the last one's.
            unit = unit_rows(query[None, :], rows=1, dimension=len(query))[0]
            missing, stored = _with_vectors(self._index, missing)
            for (document, _), score in zip(missing, stored @ unit, strict=True):
                cosines[document.id] = float(score)
        lexical = {document.id: score for document, score in matching}
        return weighted_scores(cosines, lexical, alpha=self._plan.alpha)

    def _reranked(self, place: int, found: Found) -> Found:
        if not found or self._plan.rerank is None or self._texts is None:
            return found
        scores = rerank_scores(
            self._plan.rerank, self._texts[place], [document.text for document, _ in found]
        )
        order = np.argsort(-scores, kind="stable")
        return [(found[index][0], float(scores[index])) for index in order]

    def _only(self, place: int) -> _Search:
        vectors = None if self._vectors is None else self._vectors[place : place + 1]
        texts = None if self._texts is None else self._texts[place : place + 1]
        return _Search(self._index, replace(self._plan), vectors, texts)

    def _queries(self) -> Vectors:
        if self._vectors is None:
            raise ConfigError(f"mode={self._plan.mode!r} needs the query's vector, and there is none.")
        return self._vectors


def _with_vectors(index: IndexFolder, found: Found) -> tuple[Found, Vectors]:
    """Fetch the vectors of what a search found, without what another process has deleted since."""
    try:
        return found, index.vectors_of([document.id for document, _ in found])
    except DataError:
        there = index.get([document.id for document, _ in found])
        found = [pair for pair, document in zip(found, there, strict=True) if document is not None]
        return found, index.vectors_of([document.id for document, _ in found])


def as_hit(document: Document, score: float) -> Hit:
    """Turn a document and its score into a hit with a metadata dict of its own."""
    return Hit(
        id=document.id,
        score=score,
        text=document.text,
        metadata=dict(document.metadata),
        parent_id=document.parent_id,
        start=document.start,
        end=document.end,
    )


def _hits(found: Found, plan: Plan) -> list[Hit]:
    kept = [pair for pair in found if plan.min_score is None or pair[1] >= plan.min_score]
    return [as_hit(document, score) for document, score in kept[: plan.k]]
