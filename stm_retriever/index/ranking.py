"""From a vector index's candidates to the exact best: scores that do not depend on how FAISS sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError, DataError
from stm_retriever.index.vectors import Labels, VectorIndex, Vectors

_SPARE = 16
_ROUNDING = 1e-5  # two float32 inner products of one pair of unit vectors differ by less
_FEW = 0.05  # share of matches up to which reading their vectors from the store beats searching among codes
_FEWEST, _MOST = 1000, 20_000  # matches that are always, and never, so few

Stored = Callable[[list[int]], Vectors | None]
"""Gives the stored vectors of labels, or None if one is gone by now."""


class ChangedMeanwhileError(Exception):
    """A candidate was deleted while the search ran; it starts again."""


def unit_rows(vectors: npt.ArrayLike, *, rows: int, dimension: int) -> Vectors:
    """Return vectors as float32 (rows, dimension), each of length 1.

    Raises:
        ConfigError: If they have another shape.
        DataError: If one is not finite or zero, so that it has no direction.
    """
    array = np.asarray(vectors, dtype=np.float64)
    if array.shape != (rows, dimension):
        raise ConfigError(
            f"Got vectors of shape {array.shape}, but the index needs {(rows, dimension)}: one row per text, "
            f"of its model's {dimension} dimensions. Encode with the embedder that the index was made with."
        )
    if rows == 1:  # every search; the general way below costs several times as much for one row
        length = math.sqrt(float(np.dot(array[0], array[0])))
        if 0 < length < math.inf:
            return (array / length).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", array, array))[:, None]
    if not (np.isfinite(norms) & (norms > 0)).all():
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        raise DataError(
            f"Vector {bad[0]} is zero or not finite, so it is similar to nothing ({len(bad)} of {rows} are). "
            "Nothing was written. Look at the text that it was made from."
        )
    unit: Vectors = (array / norms).astype(np.float32)
    return unit


def exact_top(
    index: VectorIndex, queries: Vectors, k: int, *, stored: Stored, allowed: Labels | None = None
) -> list[list[tuple[int, float]]]:
    """The k best labels and scores of each query; ties by label.

    FAISS gives equal texts scores that differ in the last bit, and breaks ties as it likes. So a few more
    candidates than k are scored again, and more still while the k-th best ties with the last candidate.

    Args:
        index: Where to search.
        queries: float32 (n, dimension), of length 1.
        k: How many per query, >= 1.
        stored: Where vectors come from if the index keeps only codes of them.
        allowed: Sorted labels that may be found, or None for all.

    Raises:
        ChangedMeanwhileError: If ``stored`` lacks a candidate.
    """
    limit = len(index) if allowed is None else min(len(index), len(allowed))
    asked = min(index.candidates_factor * k + _SPARE, limit)
    if asked == 0 or len(queries) == 0:
        return [[] for _ in queries]
    if allowed is not None and _are_few(index, len(allowed)):
        vectors = stored(allowed.tolist())
        if vectors is None:
            raise ChangedMeanwhileError
        return [_nearest(query, allowed, vectors, k) for query in queries]
    found = index.search(queries, asked, allowed=allowed)
    ranked = []
    for row, query in enumerate(queries):
        labels, wanted = found[row], asked
        while True:
            best, settled = _rescored(index, query, labels, k, stored)
            if settled or len(labels) < wanted or wanted >= limit:
                break
            wanted = min(2 * wanted, limit)
            labels = index.search(query[None, :], wanted, allowed=allowed)[0]
        ranked.append(best)
    return ranked


def _are_few(index: VectorIndex, allowed: int) -> bool:
    """Whether to compare a query with all vectors that may be found, where the index has only codes."""
    return not index.keeps_vectors and allowed <= min(_MOST, max(_FEWEST, _FEW * len(index)))


def _nearest(query: Vectors, labels: Labels, vectors: Vectors, k: int) -> list[tuple[int, float]]:
    """The k best of all that may be found."""
    if k < len(labels):
        rough = vectors @ query
        least = np.partition(rough, len(rough) - k)[len(rough) - k] - 2 * _ROUNDING
        near = np.flatnonzero(rough >= least)
        labels, vectors = labels[near], vectors[near]
    return _best(query, labels, vectors, k)[0]


def _rescored(
    index: VectorIndex, query: Vectors, labels: Labels, k: int, stored: Stored
) -> tuple[list[tuple[int, float]], bool]:
    """The k best of the candidates, and whether a candidate further down could not change them."""
    if len(labels) == 0:
        return [], True
    vectors = index.reconstruct(labels)
    if vectors is None:
        vectors = stored(labels.tolist())
    if vectors is None:
        raise ChangedMeanwhileError
    pairs, scores = _best(query, labels, vectors, k)
    return pairs, bool(pairs[-1][1] > scores.min() + _ROUNDING)


def _best(
    query: Vectors, labels: Labels, vectors: Vectors, k: int
) -> tuple[list[tuple[int, float]], npt.NDArray[np.float64]]:
    """The k best, and all scores; in float64, where equal vectors have equal scores."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    best = np.lexsort((labels, -scores))[:k]
    pairs = list(zip(labels[best].tolist(), scores[best].tolist(), strict=True))
    return pairs, scores
