"""Scores of a model in memory on the run's problems, per query."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stm_training.evaluate.bm25 import BM25
from stm_training.evaluate.metrics import score_run
from stm_training.evaluate.ranking import rank
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.pipeline.collections import Problem, document_id

QueryMetrics = dict[str, dict[str, float]]
Ranking = dict[str, list[tuple[str, float]]]
"""Document ids and scores by query id, best first."""
Vectors = NDArray[np.float32]

# Passages ranked per query before those of one document are counted once.
_DEPTH = 100


def encode_passages(backbone: Backbone, problem: Problem) -> Vectors:
    """Vectors (m, d) of a problem's passages, in their order."""
    return encode_texts(backbone, [passage.content for passage in problem.passages], "document")


def rank_backbone(backbone: Backbone, problem: Problem, documents: Vectors | None = None) -> Ranking:
    """Encode a problem with a model in memory and rank its documents.

    Args:
        backbone: The model.
        problem: The problem.
        documents: The passages' vectors (m, d) by this very model, where they are known.

    Returns:
        Document ids and scores by query, best first.
    """
    if documents is None:
        documents = encode_passages(backbone, problem)
    queries = encode_texts(backbone, list(problem.queries.values()), "query")
    return rank_vectors(queries, documents, problem)


def score_backbone(backbone: Backbone, problem: Problem, documents: Vectors | None = None) -> QueryMetrics:
    """Rank as :func:`rank_backbone` does, and score.

    Returns:
        ``{"ndcg@10": {query id: value}, "recall@10": {...}}``.
    """
    return score_run(rank_backbone(backbone, problem, documents), problem.qrels)


def rank_vectors(queries: Vectors, documents: Vectors, problem: Problem) -> Ranking:
    """Rank documents by query vectors (n, d) against passage vectors (m, d), in the problem's order."""
    run = rank(
        queries,
        documents,
        query_ids=list(problem.queries),
        doc_ids=[passage.id for passage in problem.passages],
        k=min(_DEPTH, len(problem.passages)),
    )
    return ranked_documents(run, problem)


def score_vectors(queries: Vectors, documents: Vectors, problem: Problem) -> QueryMetrics:
    """Score query vectors (n, d) against passage vectors (m, d), in the problem's order."""
    return score_run(rank_vectors(queries, documents, problem), problem.qrels)


def vectors_path(folder: Path, system: str, problem: Problem) -> Path:
    """Where a system's passage vectors are kept: the name holds which passages they are of."""
    ids = "\n".join(passage.id for passage in problem.passages)
    digest = hashlib.sha256(ids.encode()).hexdigest()[:16]
    return folder / f"{system.replace(':', '-')}-{digest}.npy"


def read_vectors(folder: Path, system: str, problem: Problem) -> Vectors | None:
    """What lies at :func:`vectors_path`, if anything does."""
    path = vectors_path(folder, system, problem)
    return np.load(path, allow_pickle=False) if path.exists() else None


def rank_bm25(problem: Problem) -> Ranking:
    """Rank a problem's documents by BM25."""
    index = BM25({passage.id: passage.content for passage in problem.passages})
    return ranked_documents(index.search(problem.queries, k=_DEPTH), problem)


def score_passages(run: Mapping[str, Sequence[tuple[str, float]]], problem: Problem) -> QueryMetrics:
    """Score ranked passages, counting each document once, at its best passage."""
    return score_run(ranked_documents(run, problem), problem.qrels)


def ranked_documents(run: Mapping[str, Sequence[tuple[str, float]]], problem: Problem) -> Ranking:
    """Ranked passages as documents, each once, at its best passage."""
    parent = {passage.id: document_id(passage) for passage in problem.passages}
    documents: Ranking = {}
    for query_id, hits in run.items():
        best: dict[str, float] = {}
        for passage_id, score in hits:
            name = parent[passage_id]
            if not (problem.exclude_self and name == query_id):
                best.setdefault(name, score)  # hits come best first
        documents[query_id] = list(best.items())
    return documents


def together(per_problem: Sequence[QueryMetrics]) -> QueryMetrics:
    """Scores of several problems as one, each problem weighing the same whatever its number of queries.

    Args:
        per_problem: What :func:`score_backbone` gave for each, in the problems' order.

    Returns:
        One entry per query of all problems (``number/query id`` where there are several), scaled so that the
        mean over all entries is the mean of the problems' means; paired differences and their intervals
        follow from these as from scores of one problem.
    """
    if len(per_problem) == 1:
        return per_problem[0]
    joined: QueryMetrics = {}
    for metric in per_problem[0]:
        sizes = [len(scores[metric]) for scores in per_problem]
        joined[metric] = {
            f"{number}/{query}": value * sum(sizes) / (len(sizes) * size)
            for number, (scores, size) in enumerate(zip(per_problem, sizes, strict=True))
            for query, value in scores[metric].items()
        }
    return joined


def one_row(by_collection: Mapping[str, Mapping[str, float]], metric: str = "ndcg@10") -> list[float]:
    """Scores of every query as one list, each collection weighing the same; see :func:`together`."""
    return list(together([{metric: dict(queries)} for queries in by_collection.values()])[metric].values())
