"""Does the source come back? Round trips through a retriever, and first place before a cross-encoder.

Round trip: a synthetic query is worth training on if a retriever brings the passage that it was written from
back near the top (BMRetriever, arXiv 2404.18443, section 3.2: consistency filter; CADET: top 20). Reranker
first: a cross-encoder puts the source before the other top candidates (CADET), which also drops queries that
fit another passage better than their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Pair, Passage
from stm_training.filtering.candidates import (
    NONE,
    Sources,
    Step,
    bm25_candidates,
    dense_candidates,
)
from stm_training.filtering.result import Encode, Progress, Scorer
from stm_training.filtering.settings import RetrieverChoice

Verdict = Literal["keep", "drop", "unchecked"]

_PAIRS_SCORED_AT_ONCE = 64
_MOST_OF_A_SOURCE = 50  # pieces of one document; a longer one may leave fewer rivals


@dataclass(frozen=True)
class _Found:
    rows: Mapping[str, int]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class Retrievers:
    """What can bring passages back.

    Attributes:
        passages: The corpus.
        encode_query: Texts -> (n, d); ``None``: BM25 only.
        encode_document: Texts -> (n, d).
        progress: Called with (what, done, total).
        at_least: Passages to find per query even if fewer are asked for, so that a later filter that wants
            more of them need not search again (with a model, that would encode the whole corpus again).
    """

    passages: Sequence[Passage]
    encode_query: Encode | None
    encode_document: Encode | None
    progress: Progress
    at_least: int = 0
    _found: dict[str, _Found] = field(default_factory=dict)

    def chosen(self, choice: RetrieverChoice) -> tuple[str, ...]:
        """The retrievers behind a choice.

        Raises:
            ConfigError: If it asks for a model and there is none.
        """
        if choice == "auto":
            return ("dense",) if self.encode_query is not None else ("bm25",)
        names = ("bm25", "dense") if choice in ("both", "either") else (choice,)
        if "dense" in names and (self.encode_query is None or self.encode_document is None):
            message = (
                f"The filter's retriever is {choice!r}, which needs a model, and none was given. Give "
                "encode_query and encode_document (for instance those of stm_retriever.Embedder), or set "
                "retriever: bm25."
            )
            raise ConfigError(message)
        return names

    def best(self, name: str, queries: Sequence[str], n: int) -> NDArray[np.int64]:
        """(q, n) places of the best passages by the retriever of this name."""
        earlier = self._found.get(name)
        if earlier is None or earlier.places.shape[1] < n or not earlier.rows.keys() >= set(queries):
            places = self._search(name, queries, max(n, self.at_least))
            earlier = _Found({query: row for row, query in enumerate(queries)}, places)
            self._found[name] = earlier
        rows = [earlier.rows[query] for query in queries]
        return earlier.places[rows, :n] if rows else earlier.places[:, :n]

    def _search(self, name: str, queries: Sequence[str], n: int) -> NDArray[np.int64]:
        texts = [passage.content for passage in self.passages]
        step = self._step(f"{name} search")
        if name == "bm25" or self.encode_query is None or self.encode_document is None:
            return bm25_candidates(queries, texts, n=n, step=step)
        return dense_candidates(queries, texts, self.encode_query, self.encode_document, n=n, step=step)

    def _step(self, what: str) -> Step:
        return lambda done, total: self.progress(what, done, total)


def round_trip(
    pairs: Sequence[Pair], sources: Sources, retrievers: Retrievers, *, choice: RetrieverChoice, k: int
) -> list[Verdict]:
    """Judge each pair by whether its source is among the ``k`` best passages for its query.

    Args:
        pairs: What to judge.
        sources: Which passages count as a pair's source.
        retrievers: The corpus and how to search it.
        choice: Which retriever must find the source.
        k: How many passages.

    Returns:
        One verdict per pair; ``"unchecked"`` where the positive is not in the corpus.
    """
    rows, row_of = _unique([pair.query for pair in pairs])
    names = retrievers.chosen(choice)
    found = {name: retrievers.best(name, rows, k) for name in names}
    enough = any if choice == "either" else all
    verdicts: list[Verdict] = []
    for pair in pairs:
        source = sources.of(pair)
        row = row_of[pair.query]
        back = enough(not source.isdisjoint(found[name][row].tolist()) for name in names)
        verdicts.append("unchecked" if not source else "keep" if back else "drop")
    return verdicts


def reranker_first(
    pairs: Sequence[Pair],
    sources: Sources,
    retrievers: Retrievers,
    scorer: Scorer,
    *,
    candidates: int,
) -> list[Verdict]:
    """Judge each pair by whether the scorer puts its source before every other top candidate.

    Args:
        pairs: What to judge.
        sources: Which passages count as a pair's source, and so are none of its rivals.
        retrievers: Where rivals come from: the model if there is one, else BM25.
        scorer: (query, passage) pairs -> relevance.
        candidates: Rivals per query.

    Returns:
        One verdict per pair. A source as good as its best rival counts as first.

    Raises:
        DataError: If a score is not finite.
    """
    rows, row_of = _unique([pair.query for pair in pairs])
    found = retrievers.best(
        retrievers.chosen("auto")[0], rows, rivals_and_sources(pairs, sources, candidates)
    )
    verdicts: list[Verdict] = []
    for start in range(0, len(pairs), _PAIRS_SCORED_AT_ONCE):
        block = pairs[start : start + _PAIRS_SCORED_AT_ONCE]
        rivals = [
            _rivals(found[row_of[pair.query]], sources.of(pair), candidates, retrievers.passages)
            for pair in block
        ]
        verdicts.extend(_first(block, rivals, sources, scorer))
        retrievers.progress("reranking", start + len(block), len(pairs))
    return verdicts


def rivals_and_sources(pairs: Sequence[Pair], sources: Sources, candidates: int) -> int:
    """How many passages to find so that ``candidates`` rivals are left when the source is taken out."""
    own = max((len(sources.of(pair)) for pair in pairs), default=0)
    return candidates + min(own, _MOST_OF_A_SOURCE)


def _first(
    pairs: Sequence[Pair], rivals: Sequence[list[str]], sources: Sources, scorer: Scorer
) -> list[Verdict]:
    asked = [
        (pair.query, text)
        for pair, others in zip(pairs, rivals, strict=True)
        for text in (pair.positive, *others)
    ]
    scores = np.asarray(scorer(asked), dtype=np.float32)
    if scores.shape != (len(asked),) or not np.isfinite(scores).all():
        message = (
            f"The reranker gave scores of shape {scores.shape} for {len(asked)} texts, or some that are not "
            "finite, so nothing can be ranked. Check the model, or switch the filter off."
        )
        raise DataError(message)
    verdicts: list[Verdict] = []
    start = 0
    for pair, others in zip(pairs, rivals, strict=True):
        own, rest = scores[start], scores[start + 1 : start + 1 + len(others)]
        start += 1 + len(others)
        known = bool(sources.of(pair))
        verdicts.append("unchecked" if not known else "keep" if not (rest > own).any() else "drop")
    return verdicts


def _rivals(
    places: NDArray[np.int64], source: frozenset[int], candidates: int, passages: Sequence[Passage]
) -> list[str]:
    others = [int(place) for place in places if place != NONE and int(place) not in source]
    return [passages[place].content for place in others[:candidates]]


def _unique(queries: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Each query once, and the row of each."""
    rows = list(dict.fromkeys(queries))
    return rows, {query: row for row, query in enumerate(rows)}
