"""BM25 as a miner: the project's BM25, score by score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stm_training.evaluate.bm25 import BM25
from stm_training.mining.nearest import Block, Floats, Ints, Top, top_of_scores


class BM25Scorer(BM25):
    """Scores of a corpus' texts, by column; a text that shares no word with a query is no candidate.

    Args:
        texts: The corpus, one text per column; those behind the first ``columns`` are indexed as well and can
            be scored in pairs, and are never ranked.
        queries: The queries, one per row.
        columns: How many texts are ranked.

    Raises:
        DataError: If no text holds an indexable word.
        MissingExtraError: If bm25s or PyStemmer is not installed.
    """

    def __init__(self, texts: Sequence[str], queries: Sequence[str], columns: int) -> None:
        # BM25 sorts by descending id: these ids keep the order of the columns.
        super().__init__({f"{len(texts) - place:012d}": text for place, text in enumerate(texts)})
        self.rows, self.columns = len(queries), columns
        self._queries = self._tokenize(queries)

    def top(self, block: Block, k: int) -> Top:
        """See :class:`stm_training.mining.nearest.Scorer`."""
        queries = self._queries[block.start : block.stop]
        scores = np.stack([self._scores(words)[block.first : block.last] for words in queries])
        scores[scores <= 0] = -np.inf
        return top_of_scores(scores, block, k)

    def pairs(self, rows: Ints, columns: Ints) -> Floats:
        """Scores (n,) of column ``columns[i]`` for query ``rows[i]``; 0 where they share no word."""
        found = np.empty(len(rows), dtype=np.float32)
        scored, scores = -1, np.empty(0, dtype=np.float32)
        for place, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            if row != scored:
                scored, scores = row, self._scores(self._queries[row])
            found[place] = scores[column]
        return found
