"""Contrastive losses on unit vectors.

Similarities are cosines, since every vector comes in at unit length; they are divided by the temperature.
All arithmetic is float32 whatever the model's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stm_loss(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None = None,
    *,
    temperature: float,
    has_negative: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """STM's InfoNCE: a query's own hard negatives and the batch's positives (arXiv 2602.04731, section 3).

    ``-log( e^{s(q,p+)/t} / ( sum_own e^{s(q,p-)/t} + sum_j e^{s(q,p_j+)/t} ) )``: hard negatives of other
    queries are not in the denominator.

    Args:
        queries: (batch, dimension).
        positives: (batch, dimension); row i belongs to query i.
        own_negatives: (batch, dimension) or (batch, n, dimension), or ``None``.
        temperature: Positive; divides the similarities.
        has_negative: Boolean (batch,) or (batch, n); rows without take part with in-batch positives only.
        excluded: Boolean (batch, batch); positive j is no negative of query i (the same document, or another
            relevant one). The diagonal is ignored.

    Returns:
        The mean over the batch, a float32 scalar.
    """
    scores = _similarities(queries, positives, temperature)
    logits = _exclude(scores, excluded)
    if own_negatives is not None:
        grouped = own_negatives if own_negatives.dim() == 3 else own_negatives[:, None]
        own = torch.einsum("bd,bnd->bn", queries.float(), grouped.float()) / temperature
        if has_negative is not None:
            present = has_negative if has_negative.dim() == 2 else has_negative[:, None]
            own = own.masked_fill(~present, -torch.inf)
        logits = torch.cat([logits, own], dim=1)
    return _negative_log_share(scores, logits)


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    excluded: Tensor | None = None,
    excluded_negatives: Tensor | None = None,
) -> Tensor:
    """InfoNCE with every positive and every hard negative of the batch.

    Van den Oord et al. 2018 (arXiv 1807.03748), section 2.3; what sentence-transformers calls
    MultipleNegativesRankingLoss, with ``scale = 1 / temperature``.

    Args:
        queries: (batch, dimension).
        positives: (batch, dimension); row i belongs to query i.
        negatives: (m, dimension), or ``None``.
        temperature: Positive; divides the similarities.
        excluded: Boolean (batch, batch); positive j is no negative of query i. The diagonal is ignored.
        excluded_negatives: Boolean (batch, m); negative j is no negative of query i.

    Returns:
        The mean over the batch, a float32 scalar.
    """
    scores = _similarities(queries, positives, temperature)
    logits = _exclude(scores, excluded)
    if negatives is not None and len(negatives) > 0:
        hard = _similarities(queries, negatives, temperature)
        if excluded_negatives is not None:
            hard = hard.masked_fill(excluded_negatives, -torch.inf)
        logits = torch.cat([logits, hard], dim=1)
    return _negative_log_share(scores, logits)


def _similarities(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    return left.float() @ right.float().T / temperature


def _exclude(scores: Tensor, excluded: Tensor | None) -> Tensor:
    if excluded is None:
        return scores
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(excluded & ~own, -torch.inf)


def _negative_log_share(scores: Tensor, logits: Tensor) -> Tensor:
    return (torch.logsumexp(logits, dim=1) - scores.diagonal()).mean()
