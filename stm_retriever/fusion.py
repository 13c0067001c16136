"""One ranking from two: reciprocal ranks, or weighted scores brought to one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RRF_K = 60
"""The constant of Cormack, Clarke and Buettcher, SIGIR 2009, section 2."""


def reciprocal_ranks(rankings: Sequence[Sequence[str]], *, k: int = RRF_K) -> dict[str, float]:
    """Fuse rankings by reciprocal rank (Cormack et al., "Reciprocal Rank Fusion outperforms ...", 2009).

    Args:
        rankings: Ids, best first, each at most once per ranking.
        k: How much less the first ranks stand out; 60 in the paper.

    Returns:
        Per id the sum of ``1 / (k + rank)`` over the rankings that have it, ranks from 1; best first, equal
        ones in order of appearance in the rankings.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (k + rank)
    return best_first(scores)


def weighted_scores(
    cosines: Mapping[str, float], lexical: Mapping[str, float], *, alpha: float = 0.5
) -> dict[str, float]:
    """Fuse scores as a convex combination, each scaled from its least possible to its greatest found value.

    The scaling is TM2C2 of Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval",
    2023, section 3: a cosine can be no less than -1 and a BM25 score no less than 0, whatever was found, so
    that a single weak hit is not blown up to 1.

    Args:
        cosines: Cosine similarity of every candidate; a missing one counts as the least.
        lexical: BM25 score, positive, of the candidates that share a term with the query.
        alpha: Weight of the cosine in [0, 1]; the lexical score gets the rest.

    Returns:
        Score in [0, 1] per candidate, best first, equal ones in order of appearance.
    """
    top_cosine = max(cosines.values(), default=-1.0) + 1.0
    top_lexical = max(lexical.values(), default=0.0)
    scores = {}
    for name in dict.fromkeys([*cosines, *lexical]):
        dense = (cosines.get(name, -1.0) + 1.0) / top_cosine if top_cosine > 0 else 0.0
        sparse = lexical.get(name, 0.0) / top_lexical if top_lexical > 0 else 0.0
        scores[name] = alpha * dense + (1.0 - alpha) * sparse
    return best_first(scores)


def best_first(scores: Mapping[str, float]) -> dict[str, float]:
    """Sort by score, highest first; equal ones keep their order."""
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
