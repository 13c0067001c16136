"""BM25, the lexical system that every dense one is held against.

bm25s with its defaults (Lucene's variant, k1 = 1.5, b = 0.75), English stop words and the English
Snowball stemmer: the setting of MTEB's BM25 baseline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError, require
from stm_training.evaluate.ranking import top_columns

_PURPOSE = "the BM25 baseline"


class BM25:
    """A BM25 index over a corpus in memory.

    Args:
        documents: Document id -> text.

    Raises:
        DataError: If the corpus is empty or none of its texts holds an indexable word.
        MissingExtraError: If bm25s or PyStemmer is not installed.
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        if not documents:
            raise DataError("the corpus is empty: BM25 needs at least one document to index.")
        self._bm25s = require("bm25s", extra="train", purpose=_PURPOSE)
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
        self._stemmer = require("Stemmer", extra="train", purpose=_PURPOSE).Stemmer("english")
        # By descending id: ties then come out as trec_eval orders them.
        self._ids = sorted(documents, reverse=True)
        tokens = self._tokenize([documents[name] for name in self._ids])
        if not any(tokens):
            raise DataError(
                f"none of the {len(documents)} documents holds a word that BM25 indexes "
                "(two letters or more, not an English stop word). Leave BM25 out, or check the corpus' text."
            )
        self._index = self._bm25s.BM25()
        self._index.index(tokens, show_progress=False)
        self._vocabulary = self._index.vocab_dict

    def search(
        self, queries: Mapping[str, str], *, k: int = 100, exclude_self: bool = False
    ) -> dict[str, list[tuple[str, float]]]:
        """Rank the corpus for every query.

        Args:
            queries: Query id -> text.
            k: How many documents per query, at most.
            exclude_self: Drop the document whose id equals the query's.

        Returns:
            Query id -> (document id, score), best first. Documents that share no word with the query are
            not returned.

        Raises:
            ConfigError: If ``k`` is below 1.
        """
        if k < 1:
            raise ConfigError(f"k is {k}, but a ranking needs at least one document: give k >= 1.")
        row_of = {name: row for row, name in enumerate(self._ids)} if exclude_self else {}
        tokens = self._tokenize(list(queries.values()))
        run: dict[str, list[tuple[str, float]]] = {}
        for query_id, words in zip(queries, tokens, strict=True):
            scores = self._scores(words)
            own = row_of.get(query_id)
            if own is not None:
                scores[own] = 0.0
            best = top_columns(scores, k)
            run[query_id] = [(self._ids[row], float(scores[row])) for row in best if scores[row] > 0]
        return run

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = self._bm25s.tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return tokens

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        known = [word for word in words if word in self._vocabulary]
        if not known:  # bm25s fails on a query without words
            return np.zeros(len(self._ids), dtype=np.float32)
        return np.array(self._index.get_scores(known), dtype=np.float32)
