"""Negatives that are positives in disguise: the same text, nearly its words, or too close to the query.

The margin is positive-aware (NV-Retriever, arXiv 2407.15831, section 4.2): a negative may come up to 95 % of
its own positive's similarity, or to 0.05 below it. Relative margins are taken of the size of the similarity,
so that a negative positive-similarity keeps its meaning (-0.2 allows up to -0.21, not up to -0.19).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stm_training.data.leakage import normalise
from stm_training.data.records import Pair, Passage
from stm_training.filtering.candidates import unit_vectors
from stm_training.filtering.result import Encode, Progress
from stm_training.filtering.settings import NegativeFilterSection
from stm_training.synthesize.filters import DropLog, Limits, negative_problem

_PAIRS_AT_ONCE = 512


def known_positives(pairs: Iterable[Pair]) -> Mapping[str, frozenset[str]]:
    """Normalised query -> normalised texts of everything that the pairs call relevant to it."""
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        found[normalise(pair.query)].add(normalise(pair.positive))
    return {query: frozenset(texts) for query, texts in found.items()}


def drop_by_text(
    pairs: Sequence[Pair],
    settings: NegativeFilterSection,
    drops: DropLog,
    known: Mapping[str, frozenset[str]],
) -> list[Pair]:
    """Drop negatives by their text alone.

    ``negative_is_positive``: equals, but for case and punctuation, a positive of the same query.
    ``negative_repeated``: stands twice in the pair. Also the filters of
    :func:`stm_training.synthesize.filters.negative_problem`.

    Args:
        pairs: In order.
        settings: Limits.
        drops: Receives what is dropped.
        known: See :func:`known_positives`; of all pairs, those too that other filters dropped.

    Returns:
        The pairs, some with fewer negatives.
    """
    limits = Limits(negative_shortest=settings.shortest, negative_overlap=settings.overlap)
    cleaned = []
    for pair in pairs:
        passage = Passage(pair.positive_id or "", pair.positive)
        relevant = known.get(normalise(pair.query), frozenset())
        seen: set[str] = set()
        kept = []
        for negative in pair.negatives:
            form = normalise(negative)
            if form in relevant:
                problem: str | None = "negative_is_positive"
            elif form in seen:
                problem = "negative_repeated"
            else:
                problem = negative_problem(negative, passage, limits)
            seen.add(form)
            if problem is None:
                kept.append(negative)
            else:
                drops.add(problem, passage.id, negative)
        cleaned.append(_with(pair, kept))
    return cleaned


def drop_by_margin(
    pairs: Sequence[Pair],
    settings: NegativeFilterSection,
    drops: DropLog,
    *,
    encode_query: Encode,
    encode_document: Encode,
    progress: Progress,
) -> list[Pair]:
    """Drop negatives whose cosine to the query passes the positive-aware limit (``negative_too_close``).

    Args:
        pairs: In order.
        settings: ``margin``, ``relative``, ``absolute``.
        drops: Receives what is dropped.
        encode_query: Texts -> (n, d).
        encode_document: Texts -> (n, d).
        progress: Called with (what, done, total).

    Returns:
        The pairs, some with fewer negatives.
    """
    having = [place for place, pair in enumerate(pairs) if pair.negatives]
    cleaned = list(pairs)
    for start in range(0, len(having), _PAIRS_AT_ONCE):
        places = having[start : start + _PAIRS_AT_ONCE]
        block = [pairs[place] for place in places]
        queries = _vectors({pair.query: None for pair in block}, encode_query, "query")
        documents = _vectors(
            {text: None for pair in block for text in (pair.positive, *pair.negatives)},
            encode_document,
            "document",
        )
        for place, pair in zip(places, block, strict=True):
            query = queries[pair.query]
            limit = highest_allowed(float(query @ documents[pair.positive]), settings)
            kept = [text for text in pair.negatives if float(query @ documents[text]) <= limit]
            for text in pair.negatives:
                if text not in kept:
                    drops.add("negative_too_close", pair.positive_id or "", text)
            cleaned[place] = _with(pair, kept)
        progress("comparing negatives", start + len(block), len(having))
    return cleaned


def highest_allowed(positive: float, settings: NegativeFilterSection) -> float:
    """The highest similarity that a negative may have, given its positive's."""
    if settings.margin == "absolute":
        return positive - settings.absolute
    return positive - abs(positive) * (1 - settings.relative)


def _vectors(texts: Mapping[str, None], encode: Encode, what: str) -> dict[str, NDArray[np.float32]]:
    return dict(zip(texts, unit_vectors(encode(list(texts)), what), strict=True))


def _with(pair: Pair, negatives: Sequence[str]) -> Pair:
    return pair if len(negatives) == len(pair.negatives) else pair.with_negatives(negatives)
