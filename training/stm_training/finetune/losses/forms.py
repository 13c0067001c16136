"""Contrastive losses on unit vectors.

Similarities are cosines, since every vector comes in at unit length; they are divided by the temperature.
All arithmetic is float32 whatever the model's precision (float64 for float64 vectors).

``hardness_weight`` w multiplies a negative's term in the denominator by ``exp(w * cosine)``, in which the
cosine is a constant to the gradient: harder negatives push more (LLaVE, arXiv 2503.04812, equation 5, on
in-batch negatives; here on every negative of the form). It is not divided by the temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stm_training.finetune.losses.terms import Term


def stm_loss(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None = None,
    *,
    temperature: float,
    has_negative: Tensor | None = None,
    excluded: Tensor | None = None,
    hardness_weight: float = 0.0,
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
        hardness_weight: See the module.

    Returns:
        The mean over the batch, a float32 scalar; a row of which every negative is masked contributes 0.
    """
    return stm_term(
        queries,
        positives,
        own_negatives,
        temperature=temperature,
        has_negative=has_negative,
        excluded=excluded,
        hardness_weight=hardness_weight,
    ).mean()


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float,
    excluded: Tensor | None = None,
    excluded_negatives: Tensor | None = None,
    hardness_weight: float = 0.0,
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
        hardness_weight: See the module.

    Returns:
        The mean over the batch, a float32 scalar; a row of which every negative is masked contributes 0.
    """
    return info_nce_term(
        queries,
        positives,
        negatives,
        temperature=temperature,
        excluded=excluded,
        excluded_negatives=excluded_negatives,
        hardness_weight=hardness_weight,
    ).mean()


def hard_negatives_only(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None,
    *,
    temperature: float,
    has_negative: Tensor | None = None,
    hardness_weight: float = 0.0,
) -> Tensor:
    """InfoNCE of a query's positive against its own hard negatives alone.

    Args:
        queries: (batch, dimension).
        positives: (batch, dimension); row i belongs to query i.
        own_negatives: (batch, dimension) or (batch, n, dimension), or ``None``.
        temperature: Positive; divides the similarities.
        has_negative: Boolean (batch,) or (batch, n).
        hardness_weight: See the module.

    Returns:
        The mean over the rows that have a negative, a float32 scalar; 0 with zero gradients if none has.
    """
    return hard_negatives_term(
        queries,
        positives,
        own_negatives,
        temperature=temperature,
        has_negative=has_negative,
        hardness_weight=hardness_weight,
    ).mean()


def stm_term(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None,
    *,
    temperature: float,
    has_negative: Tensor | None,
    excluded: Tensor | None,
    hardness_weight: float,
) -> Term:
    """Each row's part of :func:`stm_loss`."""
    own, logits = _in_batch(queries, positives, temperature, excluded, hardness_weight)
    if own_negatives is not None:
        hard, _ = _own(queries, own_negatives, temperature, has_negative, hardness_weight)
        logits = torch.cat([logits, hard], dim=1)
    return Term(torch.logsumexp(logits, dim=1) - own)


def info_nce_term(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    *,
    temperature: float,
    excluded: Tensor | None,
    excluded_negatives: Tensor | None,
    hardness_weight: float,
) -> Term:
    """Each row's part of :func:`info_nce`."""
    own, logits = _in_batch(queries, positives, temperature, excluded, hardness_weight)
    if negatives is not None and len(negatives) > 0:
        hard = _weighted(cosines(queries, negatives), temperature, hardness_weight)
        if excluded_negatives is not None:
            hard = hard.masked_fill(excluded_negatives, -torch.inf)
        logits = torch.cat([logits, hard], dim=1)
    return Term(torch.logsumexp(logits, dim=1) - own)


def hard_negatives_term(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None,
    *,
    temperature: float,
    has_negative: Tensor | None,
    hardness_weight: float,
) -> Term:
    """Each row's part of :func:`hard_negatives_only`."""
    own = (full(queries) * full(positives)).sum(dim=1) / temperature
    if own_negatives is None:
        return Term(own * 0, torch.zeros(len(own), dtype=torch.bool, device=own.device))
    hard, present = _own(queries, own_negatives, temperature, has_negative, hardness_weight)
    logits = torch.cat([own[:, None], hard], dim=1)
    return Term(torch.logsumexp(logits, dim=1) - own, present.any(dim=1))


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """(n, m) cosines of unit vectors (n, dimension) and (m, dimension)."""
    return full(left) @ full(right).T


def own_cosines(queries: Tensor, own: Tensor) -> Tensor:
    """(b, n) cosines of queries (b, dimension) with texts of their own (b, n, dimension)."""
    return torch.einsum("bd,bnd->bn", full(queries), full(own))


def full(vectors: Tensor) -> Tensor:
    """The vectors in float32, or as they are if they are float64."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _in_batch(
    queries: Tensor, positives: Tensor, temperature: float, excluded: Tensor | None, hardness: float
) -> tuple[Tensor, Tensor]:
    """The logit of each row's positive (b,), and those of all positives (b, b)."""
    scores = cosines(queries, positives)
    own = scores.diagonal() / temperature
    logits = _weighted(scores, temperature, hardness)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    if hardness:
        logits = torch.where(diagonal, own[:, None], logits)
    if excluded is not None:
        logits = logits.masked_fill(excluded & ~diagonal, -torch.inf)
    return own, logits


def _own(
    queries: Tensor, negatives: Tensor, temperature: float, present: Tensor | None, hardness: float
) -> tuple[Tensor, Tensor]:
    """Logits of each row's own negatives (b, n), and which of them are there."""
    grouped = negatives if negatives.dim() == 3 else negatives[:, None]
    logits = _weighted(own_cosines(queries, grouped), temperature, hardness)
    if present is None:
        return logits, torch.ones_like(logits, dtype=torch.bool)
    present = present if present.dim() == 2 else present[:, None]
    return logits.masked_fill(~present, -torch.inf), present


def _weighted(scores: Tensor, temperature: float, hardness: float) -> Tensor:
    logits = scores / temperature
    return logits + hardness * scores.detach() if hardness else logits
