"""The candidates of each query, in order of score: exact, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_SCORES_PER_BLOCK = 2**24  # 64 MiB of fp32 scores at a time, whatever the size of the corpus
_COLUMNS_PER_BLOCK = 2**16
_MOST_ROWS = 1024
# Groups per wanted column when a bound is looked for: more make it tighter, fewer make it cheaper.
_GROUPS_PER_COLUMN = 6
_NOTHING = np.uint64(2**64 - 1)  # the key of no candidate: behind all others
_LOWEST = np.float32(np.finfo(np.float32).min)


class Scorer(Protocol):
    """Finds the best texts of the corpus for some queries."""

    rows: int
    columns: int

    def top(self, block: Block, k: int) -> Top:
        """The best columns of a block's queries within its columns."""
        ...


@dataclass(frozen=True)
class Block:
    """Queries ``start`` to ``stop`` and columns ``first`` to ``last``, with what is excluded there.

    ``rows`` and ``columns`` (n,) name the excluded places, counted from the block's corner.
    """

    start: int
    stop: int
    first: int
    last: int
    rows: Ints
    columns: Ints


@dataclass(frozen=True)
class Top:
    """The best of a block: columns (b, k) from the block's corner, best first, and their scores (b, k).

    Ties go to the lower column; what fills a row up has score -inf. ``excluded`` (n,) are the scores of the
    excluded places, which are not among the best.
    """

    columns: Ints
    scores: Floats
    excluded: Floats


@dataclass(frozen=True)
class Ranking:
    """The nearest columns of queries ``start`` to ``start + b``.

    Attributes:
        start: The first query.
        columns: (b, k) int64, best first, ties by lower column; what is there to fill up has score -inf.
        scores: (b, k) float32.
        excluded_rows: Row (in this block) of each excluded column that would have been among the k.
        excluded_columns: The columns of those.
    """

    start: int
    columns: Ints
    scores: Floats
    excluded_rows: Ints
    excluded_columns: Ints


class DenseScorer:
    """Dot products of vectors: the cosine, where they are of unit length.

    Args:
        queries: (n, d) float32.
        documents: (m or more, d) float32; rows behind the first m are scored in pairs, never ranked.
        columns: m.
    """

    def __init__(self, queries: Floats, documents: Floats, columns: int) -> None:
        self.rows, self.columns = len(queries), columns
        self._queries, self._documents = queries, documents
        self._buffer: Floats = np.empty(0, dtype=np.float32)

    def top(self, block: Block, k: int) -> Top:
        """See :class:`Scorer`."""
        shape = (block.stop - block.start, block.last - block.first)
        if self._buffer.size < shape[0] * shape[1]:  # fresh memory costs a third of the product's time
            self._buffer = np.empty(shape[0] * shape[1], dtype=np.float32)
        scores = self._buffer[: shape[0] * shape[1]].reshape(shape)
        np.matmul(
            self._queries[block.start : block.stop], self._documents[block.first : block.last].T, out=scores
        )
        return top_of_scores(scores, block, k)

    def row(self, row: int, columns: Ints) -> Floats:
        """Scores (k,) of one query for some documents."""
        found: Floats = self._documents[columns] @ self._queries[row]
        return found

    def pairs(self, rows: Ints, columns: Ints) -> Floats:
        """Scores (n,) of document ``columns[i]`` for query ``rows[i]``."""
        found = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _MOST_ROWS):
            part = slice(start, start + _MOST_ROWS)
            found[part] = np.einsum("nd,nd->n", self._queries[rows[part]], self._documents[columns[part]])
        return found


def rank_columns(
    scorer: Scorer, k: int, starts: Ints, excluded: Ints, *, whole_rows: bool = False
) -> Iterator[Ranking]:
    """Rank the corpus for every query, without the columns that are excluded for it.

    Args:
        scorer: What scores.
        k: Columns per query.
        starts: (n + 1,) where each query's exclusions start.
        excluded: The excluded columns of all queries.
        whole_rows: Never cut the corpus, for scorers that score all of it anyhow.

    Yields:
        The queries block by block, in order.
    """
    k = min(k, scorer.columns)
    width = scorer.columns if whole_rows else min(scorer.columns, _COLUMNS_PER_BLOCK)
    # What is sorted takes some eight times the memory of a score.
    rows = max(1, min(_MOST_ROWS, _SCORES_PER_BLOCK // max(width, 8 * k)))
    for start in range(0, scorer.rows, rows):
        stop = min(start + rows, scorer.rows)
        own = excluded[starts[start] : starts[stop]]
        own_rows = np.repeat(np.arange(stop - start), np.diff(starts[start : stop + 1]))
        own_scores = np.empty(len(own), dtype=np.float32)
        best: tuple[Ints, Floats] | None = None
        for first in range(0, scorer.columns, width):
            last = min(first + width, scorer.columns)
            inside = np.flatnonzero((own >= first) & (own < last))
            block = Block(start, stop, first, last, own_rows[inside], own[inside] - first)
            top = scorer.top(block, k)
            own_scores[inside] = top.excluded
            found = (top.columns + first, top.scores)
            best = found if best is None else _merge(best, found, k)
        if best is not None:
            near = own_scores >= np.maximum(best[1][own_rows, -1], _LOWEST)
            yield Ranking(start, *best, own_rows[near], own[near])


def top_of_scores(scores: Floats, block: Block, k: int) -> Top:
    """The best of a block whose scores are all there; they are overwritten."""
    excluded = scores[block.rows, block.columns]
    scores[block.rows, block.columns] = -np.inf
    return Top(*top_columns(scores, k), excluded)


def top_columns(scores: Floats, k: int) -> tuple[Ints, Floats]:
    """The k highest columns of every row, exactly.

    The k-th highest of the maxima of disjoint groups is a lower bound of the k-th highest score, and two
    passes of plain comparisons find it; only the few scores above it are sorted.

    Args:
        scores: (b, n) float32.
        k: How many, at least 1.

    Returns:
        Columns (b, min(k, n)) and scores, best first, ties by lower column; -inf where a row has fewer.
    """
    k = min(k, scores.shape[1])
    bounds = np.maximum(lower_bounds(scores, k), _LOWEST)
    row, column = where_at_least(scores, bounds)
    return best_of(row, column, scores[row, column], len(scores), k)


def where_at_least(scores: NDArray[Any], bounds: NDArray[Any]) -> tuple[Ints, Ints]:
    """Rows and columns of scores (b, n) that reach their row's bound (b,), in the order of reading."""
    places = np.flatnonzero(scores >= bounds[:, None])  # four times as fast as nonzero
    rows = places // scores.shape[1]
    return rows, places - rows * scores.shape[1]


def best_of(row: Ints, column: Ints, scores: Floats, rows: int, k: int) -> tuple[Ints, Floats]:
    """The k best of every row out of scattered scores (n,), in the form of :func:`top_columns`."""
    sizes = np.bincount(row, minlength=rows)
    keys = np.full((rows, max(k, int(sizes.max(initial=0)))), _NOTHING)
    within = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    keys[row, within] = _keys(scores, column)
    keys.sort(axis=1)
    return _unpacked(keys[:, :k])


def lower_bounds(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """(b,) scores that at least k scores of each row (b, n) reach."""
    rows, count = scores.shape
    size = count // (_GROUPS_PER_COLUMN * k)
    if size > 1:
        groups = count // size
        maxima = scores[:, : size * groups].reshape(rows, size, groups).max(axis=1)
    else:
        maxima = scores
    bounds: NDArray[Any] = np.partition(maxima, maxima.shape[1] - k, axis=1)[:, maxima.shape[1] - k]
    return bounds


def _keys(scores: Floats, columns: Ints) -> Keys:
    """One number per (score, column) whose order is: higher score first, then lower column."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0, which it equals
    negative = bits >> 31 == 1
    # Floats order as their bits do, once the negative ones are turned round.
    rising = np.where(negative, ~bits, bits | np.uint32(1 << 31))
    return (~rising).astype(np.uint64) << np.uint64(32) | columns.astype(np.uint64)


def _unpacked(keys: Keys) -> tuple[Ints, Floats]:
    rising = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(rising >> 31 == 1, rising & np.uint32(2**31 - 1), ~rising)
    scores = bits.astype(np.uint32).view(np.float32)
    columns = (keys & np.uint64(2**32 - 1)).astype(np.int64)
    scores[keys == _NOTHING] = -np.inf
    columns[keys == _NOTHING] = 0
    return columns, scores


def _merge(left: tuple[Ints, Floats], right: tuple[Ints, Floats], k: int) -> tuple[Ints, Floats]:
    columns = np.concatenate([left[0], right[0]], axis=1)
    scores = np.concatenate([left[1], right[1]], axis=1)
    # Stable, and those on the left have the lower columns: ties keep their order.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(scores, order, axis=1)
