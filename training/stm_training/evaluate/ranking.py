"""Exact nearest documents by matrix product: the ranking that every dense figure rests on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError

_SCORES_PER_BLOCK = 2**24  # 64 MiB of fp32 scores at a time, whatever the size of the corpus


def rank(
    query_vectors: NDArray[np.float32],
    doc_vectors: NDArray[np.float32],
    *,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    k: int = 100,
    exclude_self: bool = False,
) -> dict[str, list[tuple[str, float]]]:
    """The ``k`` documents with the highest dot product for every query, exactly.

    Args:
        query_vectors: (n, d) fp32; of unit length where the dot product is to be the cosine.
        doc_vectors: (m, d) fp32.
        query_ids: n ids, in the order of the rows.
        doc_ids: m ids, in the order of the rows.
        k: How many documents per query; fewer come back where the corpus is smaller.
        exclude_self: Drop the document whose id equals the query's, for collections whose queries are
            documents of the corpus (ArguAna).

    Returns:
        Query id -> (document id, score), best first; ties by document id, descending, as trec_eval has them.

    Raises:
        ConfigError: If ``k`` is below 1 or the shapes do not fit together.
        DataError: If an id is repeated or a vector is not finite.
    """
    _check(query_vectors, doc_vectors, query_ids, doc_ids, k)
    # Columns by descending id: then the order of columns is the order of ties.
    order = np.array(sorted(range(len(doc_ids)), key=doc_ids.__getitem__, reverse=True), dtype=np.int64)
    names = [doc_ids[index] for index in order]
    column = {name: index for index, name in enumerate(names)} if exclude_self else {}
    documents = np.ascontiguousarray(doc_vectors[order], dtype=np.float32).T
    step = max(1, _SCORES_PER_BLOCK // max(1, len(doc_ids)))
    run: dict[str, list[tuple[str, float]]] = {}
    for start in range(0, len(query_ids), step):
        scores = np.asarray(query_vectors[start : start + step], dtype=np.float32) @ documents
        for query_id, row in zip(query_ids[start : start + step], scores, strict=True):
            own = column.get(query_id)
            if own is not None:
                row[own] = -np.inf
            columns = top_columns(row, k)
            run[query_id] = [(names[index], float(row[index])) for index in columns if row[index] != -np.inf]
    return run


def top_columns(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the ``k`` highest of ``scores`` (m,), best first, ties by lower index, cut exactly."""
    if k < len(scores):
        # Everything as good as the k-th: a partition alone would cut a tie at the border anyhow.
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= border)
    else:
        candidates = np.arange(len(scores))
    best: NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return best


def _check(
    query_vectors: NDArray[np.float32],
    doc_vectors: NDArray[np.float32],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    k: int,
) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}, but a ranking needs at least one document: give k >= 1.")
    if query_vectors.ndim != 2 or doc_vectors.ndim != 2 or query_vectors.shape[1] != doc_vectors.shape[1]:
        raise ConfigError(
            f"query vectors have shape {query_vectors.shape} and document vectors {doc_vectors.shape}; "
            "they must be (n, d) and (m, d). Encode both with one model."
        )
    for what, vectors, ids in (("query", query_vectors, query_ids), ("document", doc_vectors, doc_ids)):
        if len(ids) != len(vectors):
            raise ConfigError(f"{len(vectors)} {what} vectors came with {len(ids)} ids; give one id per row.")
        if len(set(ids)) != len(ids):
            repeated = next(name for index, name in enumerate(ids) if name in ids[:index])
            raise DataError(f"{what} id {repeated!r} is there twice, so results cannot be told apart.")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            bad = ids[int(np.flatnonzero(~finite)[0])]
            raise DataError(
                f"{int((~finite).sum())} {what} vectors are not finite, the first is that of {bad!r}; "
                "no ranking can be made of them. Run stm-train doctor on the model's folder."
            )
