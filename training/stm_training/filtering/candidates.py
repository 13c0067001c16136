"""The best passages for each query, by a model or by BM25, in blocks so that memory stays bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import DataError
from stm_training.data.leakage import normalise
from stm_training.data.records import Pair, Passage
from stm_training.evaluate.bm25 import BM25
from stm_training.filtering.result import Encode

NONE = -1
"""Fills the places of a row for which no passage was found."""

_ENCODED_AT_ONCE = 2048
_SCORES_AT_ONCE = 2**23  # 32 MiB of fp32
_SEARCHED_AT_ONCE = 256

Step = Callable[[int, int], None]


class Sources:
    """Which passages count as the source of a pair.

    The passage that the pair names, every passage with the same text but for case and punctuation, and the
    other pieces of the same document (a query about the overlap of two pieces fits both).

    Args:
        passages: The corpus.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._by_id = {passage.id: place for place, passage in enumerate(passages)}
        self._by_text: dict[int, list[int]] = defaultdict(list)
        self._by_document: dict[str, list[int]] = defaultdict(list)
        self._keys: list[int] = []
        self._found: dict[tuple[str | None, str], frozenset[int]] = {}
        self._documents: list[str] = []
        for place, passage in enumerate(passages):
            key = hash(normalise(passage.content))
            self._keys.append(key)
            self._by_text[key].append(place)
            self._documents.append(passage.parent_id or passage.id)
            self._by_document[self._documents[-1]].append(place)

    def of(self, pair: Pair) -> frozenset[int]:
        """Places of the pair's source in the corpus; empty if it is not there."""
        key = (pair.positive_id, pair.positive)
        if key not in self._found:
            self._found[key] = self._find(pair)
        return self._found[key]

    def _find(self, pair: Pair) -> frozenset[int]:
        named = self._by_id.get(pair.positive_id) if pair.positive_id is not None else None
        found = set(self._by_text.get(hash(normalise(pair.positive)), ()))
        if named is not None:
            found |= {named, *self._by_text[self._keys[named]]}
        for place in list(found):
            found.update(self._by_document[self._documents[place]])
        return frozenset(found)


def dense_candidates(
    queries: Sequence[str],
    texts: Sequence[str],
    encode_query: Encode,
    encode_document: Encode,
    *,
    n: int,
    step: Step | None = None,
) -> NDArray[np.int64]:
    """The ``n`` passages with the highest cosine for each query, exactly.

    Args:
        queries: Query texts.
        texts: Passages as they are embedded; each is encoded once and its vector is not kept.
        encode_query: Texts -> (q, d).
        encode_document: Texts -> (m, d).
        n: Passages per query.
        step: Called with (texts encoded, texts to encode).

    Returns:
        (q, n) places in ``texts``, best first, ties by the lower place; ``NONE`` where there are fewer.

    Raises:
        DataError: If a vector is not finite or zero.
    """
    total, done = len(queries) + len(texts), 0
    parts = []
    for block in _blocks(queries, _ENCODED_AT_ONCE):
        parts.append(unit_vectors(encode_query(block), "query"))
        done += len(block)
        _report(step, done, total)
    vectors = np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)
    best_places = np.full((len(queries), n), NONE, dtype=np.int64)
    best_scores = np.full((len(queries), n), -np.inf, dtype=np.float32)
    start = 0
    for block in _blocks(texts, _ENCODED_AT_ONCE):
        documents = unit_vectors(encode_document(block), "document").T
        rows = max(1, _SCORES_AT_ONCE // len(block))
        for first in range(0, len(queries), rows):
            part = slice(first, first + rows)
            scores = vectors[part] @ documents
            best_places[part], best_scores[part] = _merge(best_places[part], best_scores[part], scores, start)
        start += len(block)
        done += len(block)
        _report(step, done, total)
    return best_places


def bm25_candidates(
    queries: Sequence[str], texts: Sequence[str], *, n: int, step: Step | None = None
) -> NDArray[np.int64]:
    """The ``n`` passages that BM25 ranks highest; see :func:`dense_candidates` for what comes back.

    Passages that share no word with the query are not candidates.
    """
    index = BM25({f"{place:012d}": text for place, text in enumerate(texts)})
    best = np.full((len(queries), n), NONE, dtype=np.int64)
    for start in range(0, len(queries), _SEARCHED_AT_ONCE):
        block = {str(start + i): text for i, text in enumerate(queries[start : start + _SEARCHED_AT_ONCE])}
        for row, hits in index.search(block, k=n).items():
            places = [int(name) for name, _ in hits]
            best[int(row), : len(places)] = places
        _report(step, start + len(block), len(queries))
    return best


def unit_vectors(vectors: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Rows scaled to unit length, as float32.

    Raises:
        DataError: If a row is not finite, or is zero and so has no direction.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        message = (
            f"The model gave {int(bad.sum())} {what} vectors that are zero or not finite, so similarities "
            "mean nothing. Run stm-train doctor on the model's folder."
        )
        raise DataError(message)
    scaled: NDArray[np.float32] = vectors / lengths
    return scaled


def _merge(
    places: NDArray[np.int64], scores: NDArray[np.float32], new: NDArray[np.float32], start: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best of what was best before (q, n) and a new block of scores (q, m)."""
    n = places.shape[1]
    joined = np.concatenate([scores, new], axis=1)
    # Earlier places stand to the left, so that a stable sort breaks ties by place.
    order = np.argsort(-joined, axis=1, kind="stable")[:, :n] if joined.shape[1] <= 4 * n else _top(joined, n)
    fresh = np.arange(start, start + new.shape[1], dtype=np.int64)
    names = np.concatenate([places, np.broadcast_to(fresh, new.shape)], axis=1)
    return np.take_along_axis(names, order, axis=1), np.take_along_axis(joined, order, axis=1)


def _top(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Columns of the ``n`` highest scores of each row, best first, ties by the lower column."""
    border = np.partition(scores, scores.shape[1] - n, axis=1)[:, -n]
    result = np.empty((len(scores), n), dtype=np.int64)
    for row, (values, low) in enumerate(zip(scores, border, strict=True)):
        columns = np.flatnonzero(values >= low)
        result[row] = columns[np.argsort(-values[columns], kind="stable")][:n]
    return result


def _blocks(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _report(step: Step | None, done: int, total: int) -> None:
    if step is not None:
        step(done, total)
