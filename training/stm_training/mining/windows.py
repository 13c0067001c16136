"""The candidates that rules are applied to: by vectors, by BM25, or turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stm_training.mining.candidates import QueryGroup, exclusion_rows
from stm_training.mining.nearest import DenseScorer, Ranking, rank_columns
from stm_training.mining.rules import Window
from stm_training.mining.scoring import Scored


@dataclass(frozen=True)
class Block:
    """Some queries' candidates.

    Attributes:
        start: The first query.
        window: Their candidates.
        near: (row, column) that were excluded and would have been among them.
    """

    start: int
    window: Window
    near: list[tuple[int, int]]


def windows(scored: Scored, groups: Sequence[QueryGroup], max_rank: int | None) -> Iterator[Block]:
    """Candidates of every query up to ``max_rank`` by each miner, block by block, in order."""
    starts, excluded = exclusion_rows(groups)
    rankings = [
        rank_columns(scorer, max_rank or scorer.columns, starts, excluded, whole_rows=scored.bm25 is not None)
        for scorer in (scored.dense, scored.bm25)
        if scorer is not None
    ]
    for found in zip(*rankings, strict=True):  # the same k and corpus: cut into the same blocks
        near = sorted({place for ranking in found for place in _near(ranking)})
        if len(found) == 2 and scored.dense is not None:
            window = _in_turn(*found, scored.dense)
        else:
            ranks = np.arange(1, found[0].columns.shape[1] + 1)
            window = Window(found[0].columns, found[0].scores, np.broadcast_to(ranks, found[0].columns.shape))
        yield Block(found[0].start, window, near)


def _near(ranking: Ranking) -> Iterator[tuple[int, int]]:
    return zip(ranking.excluded_rows.tolist(), ranking.excluded_columns.tolist(), strict=True)


def _in_turn(by_vector: Ranking, by_word: Ranking, judge: DenseScorer) -> Window:
    """Both miners' candidates turn by turn, the vectors' first; one that both found at its better rank.

    The model scores them all, so that rules have one scale: BM25 finds what shares words, the model says
    whether it comes too close.
    """
    rows, k = by_vector.columns.shape
    columns = np.zeros((rows, 2 * k), dtype=np.int64)
    ranks = np.zeros((rows, 2 * k), dtype=np.int64)
    scores = np.full((rows, 2 * k), -np.inf, dtype=np.float32)
    one_to_k = np.arange(1, k + 1)
    for row in range(rows):
        vector, word = (np.isfinite(ranking.scores[row]) for ranking in (by_vector, by_word))
        found = np.concatenate([by_vector.columns[row][vector], by_word.columns[row][word]])
        rank = np.concatenate([one_to_k[vector], one_to_k[word]])
        turns = np.argsort(rank, kind="stable")
        first = np.sort(np.unique(found[turns], return_index=True)[1])
        taken = turns[first]
        columns[row, : len(taken)] = found[taken]
        ranks[row, : len(taken)] = rank[taken]
        scores[row, : len(taken)] = judge.row(by_vector.start + row, found[taken])
    return Window(columns, scores, ranks)
