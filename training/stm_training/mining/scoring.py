"""The scores that a mining rests on: of vectors, of BM25, and of the positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stm_retriever.errors import ConfigError
from stm_training.mining.bfloat16 import dense_scorer
from stm_training.mining.bm25_scores import BM25Scorer
from stm_training.mining.candidates import Corpus, QueryGroup
from stm_training.mining.nearest import DenseScorer, Floats
from stm_training.mining.settings import MineSection
from stm_training.mining.vectors import Encode, encode


@dataclass(frozen=True)
class Scored:
    """What ranks, and how the positives score.

    Attributes:
        dense: The model, unless BM25 mines alone. It judges wherever it is there.
        bm25: BM25, unless the model mines alone.
        positives: Score of every (query, positive), by what judges.
        lowest: (n,) of each query's lowest-scoring positive: the safe side, as false negatives of a weak
            positive lie as low as that one does.
    """

    dense: DenseScorer | None
    bm25: BM25Scorer | None
    positives: Floats
    lowest: Floats


def score(
    groups: Sequence[QueryGroup],
    corpus: Corpus,
    settings: MineSection,
    encode_query: Encode | None,
    encode_document: Encode | None,
) -> Scored:
    """Encode or index queries and corpus, and score the positives.

    Raises:
        ConfigError: If an encoder is needed and not there, or its vectors cannot be used.
        DataError: If a vector is not finite, or BM25 finds no word in the corpus.
    """
    queries = [group.text for group in groups]
    outside: dict[str, int] = {}  # positives that are not in the corpus: scored, and no candidates
    rows: list[int] = []
    columns: list[int] = []
    for row, group in enumerate(groups):
        for key, text in group.positives.items():
            rows.append(row)
            if isinstance(key, int):
                columns.append(key)
            else:
                columns.append(len(corpus) + outside.setdefault(text, len(outside)))
    texts = [*corpus.texts, *outside]
    row_array, column_array = np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)
    dense = bm25 = None
    if settings.miner != "dense":
        bm25 = BM25Scorer(texts, queries, len(corpus))
        positives = bm25.pairs(row_array, column_array)
    if settings.miner != "bm25":
        dense = _dense(queries, texts, len(corpus), settings, encode_query, encode_document)
        positives = dense.pairs(row_array, column_array)
    lowest = np.full(len(groups), np.inf, dtype=np.float32)
    np.minimum.at(lowest, row_array, positives)
    return Scored(dense, bm25, positives, lowest)


def resolve_band(settings: MineSection, positives: Floats) -> tuple[float, float] | None:
    """The band in scores, open sides infinite; quantiles are those of the positives' scores."""
    quantiles = settings.band_quantiles
    edges = quantiles or settings.band
    if edges is None:
        return None
    low, high = (
        edge if edge is None or quantiles is None else float(np.quantile(positives, edge)) for edge in edges
    )
    return -np.inf if low is None else low, np.inf if high is None else high


def _dense(
    queries: Sequence[str],
    texts: Sequence[str],
    columns: int,
    settings: MineSection,
    encode_query: Encode | None,
    encode_document: Encode | None,
) -> DenseScorer:
    if encode_query is None or encode_document is None:
        raise ConfigError(
            f"miner is {settings.miner!r}, which compares vectors, but no model encodes them. Give "
            "encode_query and encode_document, or set miner: bm25."
        )
    documents = encode("document", encode_document, texts)
    vectors = encode("query", encode_query, queries)
    if vectors.shape[1] != documents.shape[1]:
        raise ConfigError(
            f"query vectors have {vectors.shape[1]} dimensions and document vectors {documents.shape[1]}. "
            "Encode both with one model."
        )
    return dense_scorer(vectors, documents, columns, settings.max_rank)
