"""Retrieval metrics with trec_eval's definitions, per query.

Graded gains as in trec_eval's ``ndcg_cut`` (gain = grade, discount ``log2(rank + 1)``); ties are broken as
trec_eval breaks them: by score, compared in single precision, then by document id, both descending. These two
are for inner loops; :mod:`stm_training.evaluate.measures` has the others, by trec_eval itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError

Run: TypeAlias = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (document id, score) pairs, in any order."""

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade; a grade above 0 is relevant."""

QueryScores: TypeAlias = Mapping[str, Mapping[str, float]]
"""Metric name (``"ndcg@10"``) -> query id -> value between 0 and 1."""


def ndcg_at_k(run: Run, qrels: Qrels, k: int = 10) -> dict[str, float]:
    """Normalised discounted cumulative gain of the first ``k`` documents (Järvelin and Kekäläinen 2002).

    Args:
        run: What a system returned. Queries that ``qrels`` does not know are left out.
        qrels: The judgements. Every query here gets a value; one without results or without any relevant
            document gets 0.
        k: How many documents count, at least 1.

    Returns:
        Query id -> nDCG between 0 and 1, in the order of ``qrels``.

    Raises:
        ConfigError: If ``k`` is below 1.
        DataError: If a query's results hold a document twice or a score that is not a number.
    """
    gains, ideal = _gain_matrices(run, qrels, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    best = ideal @ discounts
    values = np.divide(gains @ discounts, best, out=np.zeros_like(best), where=best > 0)
    # The same grades in another order of summation may end a rounding error above the ideal.
    return dict(zip(qrels, np.minimum(values, 1.0).tolist(), strict=True))


def recall_at_k(run: Run, qrels: Qrels, k: int = 10) -> dict[str, float]:
    """Share of a query's relevant documents that are among the first ``k``.

    Arguments, order and errors are those of :func:`ndcg_at_k`.

    Returns:
        Query id -> recall between 0 and 1.
    """
    gains, _ = _gain_matrices(run, qrels, k)
    relevant = np.array(
        [sum(grade > 0 for grade in judged.values()) for judged in qrels.values()], dtype=float
    )
    found = (gains > 0).sum(axis=1).astype(float)
    values = np.divide(found, relevant, out=np.zeros_like(found), where=relevant > 0)
    return dict(zip(qrels, values.tolist(), strict=True))


def score_run(run: Run, qrels: Qrels, k: int = 10) -> dict[str, dict[str, float]]:
    """Every metric that we report, per query: ``{"ndcg@k": {query id: value}, "recall@k": {...}}``."""
    return {f"ndcg@{k}": ndcg_at_k(run, qrels, k), f"recall@{k}": recall_at_k(run, qrels, k)}


def mean(values: Mapping[str, float]) -> float:
    """Mean over queries.

    Raises:
        DataError: If there are no queries.
    """
    if not values:
        raise DataError(
            "there are no judged queries, so there is no mean to report. "
            "Check that the qrels file of this split names queries that are in queries.jsonl."
        )
    return float(np.mean(list(values.values())))


def _gain_matrices(run: Run, qrels: Qrels, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gains at rank 1..k as retrieved and in the best order, both (queries, k); 0 pads."""
    if k < 1:
        raise ConfigError(f"k is {k}, but a metric needs at least one document: give k >= 1.")
    gains = np.zeros((len(qrels), k))
    ideal = np.zeros((len(qrels), k))
    for row, (query_id, judged) in enumerate(qrels.items()):
        top = first_documents(query_id, run.get(query_id, ()), k)
        gains[row, : len(top)] = [max(judged.get(document_id, 0), 0) for document_id in top]
        best = sorted((grade for grade in judged.values() if grade > 0), reverse=True)[:k]
        ideal[row, : len(best)] = best
    return gains, ideal


def first_documents(query_id: str, results: Sequence[tuple[str, float]], k: int | None = None) -> list[str]:
    """Ids of the first ``k`` documents (all if None) in trec_eval's order.

    Raises:
        DataError: If a document is there twice or a score is not a number.
    """
    if not results:
        return []
    ids = [document_id for document_id, _ in results]
    scores = np.fromiter((score for _, score in results), dtype=np.float32, count=len(results))
    if np.isnan(scores).any():
        bad = ids[int(np.flatnonzero(np.isnan(scores))[0])]
        raise DataError(
            f"query {query_id!r}: the score of document {bad!r} is not a number, so there is no ranking. "
            "Look for NaN in the model's vectors: run stm-train doctor on its folder."
        )
    if len(set(ids)) != len(ids):
        raise DataError(
            f"query {query_id!r}: document {_first_repeated(ids)!r} is returned twice and would count twice. "
            "Return each document once (group chunks by their parent first)."
        )
    ranked = sorted(zip(scores.tolist(), ids, strict=True), reverse=True)
    return [document_id for _, document_id in ranked[:k]]


def _first_repeated(ids: Iterable[str]) -> str:
    seen: set[str] = set()
    for document_id in ids:
        if document_id in seen:
            return document_id
        seen.add(document_id)
    raise ValueError("no id is repeated")
