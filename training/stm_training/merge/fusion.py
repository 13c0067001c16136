"""Fuse a tuned model's vectors with its base's, as an alternative to merging their weights.

REFINE (arXiv 2410.12890) adds the vectors of the fine-tuned and the frozen base model, so that what the base
knows outside of the domain stays. This follows the paper's abstract, which fuses representations; a merge of
weights (``task_arithmetic`` with one expert at weight lambda) is the cheap relative of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stm_retriever.errors import ConfigError, DataError

Vectors = NDArray[np.float32]

LAMBDA = 0.35
"""The tuned model's share in REFINE."""

LAMBDAS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)

_SAME = 1e-9


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FusionCost(_Record):
    """What fusing vectors costs at run time against one model."""

    encoders: int = Field(2, description="Models that encode every text.")
    latency: float = Field(2.0, description="Times the time to encode a text, one model after the other.")
    memory: float = Field(2.0, description="Times the memory of the weights.")
    index: float = Field(1.0, description="Times the size of the index: the fused vector is as long as one.")

    @property
    def statement(self) -> str:
        """The cost in words."""
        return (
            f"Every query and document is encoded by {self.encoders} models: {self.latency:g} times the time "
            f"and {self.memory:g} times the memory of one. A merge of the weights costs nothing at run time."
        )


class FusionPoint(_Record):
    """One lambda. Scores are between 0 and 1, losses in points (0-100)."""

    share: float = Field(ge=0, le=1, description="Lambda: the tuned model's share.")
    domain: float = Field(description="Mean over in-domain sets of their mean nDCG@10.")
    general: float | None = Field(description="The same over the others; None without any.")
    worst_loss: float = Field(
        description="Largest loss of another set to the base, in points; 0 without others."
    )
    scores: Mapping[str, Mapping[str, float]] = Field(description="Collection: query id: nDCG@10.")


class FusionCurve(_Record):
    """In- and out-of-domain quality against lambda, from 0 (the base) to 1 (the tuned model)."""

    points: tuple[FusionPoint, ...]
    default: float = LAMBDA
    cost: FusionCost = FusionCost()

    def at(self, share: float) -> FusionPoint | None:
        """The point of a lambda, if it is on the curve."""
        return next((point for point in self.points if abs(point.share - share) <= _SAME), None)

    def choose_by(self, max_guard_loss: float) -> FusionPoint | None:
        """The best domain score that loses at most so many points on every other set; ties to less tuning."""
        allowed = [point for point in self.points if point.worst_loss <= max_guard_loss + 100 * _SAME]
        return max(allowed, key=lambda point: (point.domain, -point.share), default=None)


@dataclass(frozen=True)
class FusionSet:
    """One collection, encoded by both models; every vector has unit length.

    Attributes:
        name: The collection.
        in_domain: Whether it is of the domain that was tuned for; the others are guards.
        base_queries: (n, d) by the base.
        base_documents: (m, d) by the base.
        tuned_queries: (n, d) by the tuned model.
        tuned_documents: (m, d) by the tuned model.
        score: Scores query and document vectors: nDCG@10 by query id.
    """

    name: str
    in_domain: bool
    base_queries: Vectors
    base_documents: Vectors
    tuned_queries: Vectors
    tuned_documents: Vectors
    score: Callable[[Vectors, Vectors], Mapping[str, float]]


def fuse(base: Vectors, tuned: Vectors, share: float = LAMBDA) -> Vectors:
    """Vectors (n, d) float32 of unit length: lambda x tuned + (1 - lambda) x base, row by row.

    Args:
        base: (n, d) by the base, unit length.
        tuned: (n, d) by the tuned model of the same texts, unit length.
        share: Lambda, from 0 (the base) to 1 (the tuned model).

    Raises:
        ConfigError: If lambda is outside of 0 to 1, or the shapes differ.
        DataError: If two vectors cancel out.
    """
    if not 0 <= share <= 1:
        message = f"lambda is {share}; it is the tuned model's share, from 0 to 1. REFINE takes {LAMBDA}."
        raise ConfigError(message)
    if base.shape != tuned.shape or base.ndim != 2:
        message = (
            f"The base's vectors have shape {base.shape}, the tuned model's {tuned.shape}; only vectors of "
            f"the same texts and dimension can be fused. Encode the same texts with both models."
        )
        raise ConfigError(message)
    mixed = np.float32(share) * tuned + np.float32(1 - share) * base
    norms = np.linalg.norm(mixed, axis=1, keepdims=True)
    if not np.all(norms > 0):
        row = int(np.flatnonzero(~(norms[:, 0] > 0))[0])
        message = (
            f"In row {row} the two models' vectors cancel out at lambda {share:g} or are not finite, so "
            f"there is no direction to search by. Take another lambda, or look for NaN with stm-train doctor."
        )
        raise DataError(message)
    fused: Vectors = mixed / norms
    return fused


def lambda_curve(
    sets: Sequence[FusionSet], lambdas: Sequence[float] = LAMBDAS, *, default: float = LAMBDA
) -> FusionCurve:
    """Score every lambda from vectors that are there already; nothing is encoded.

    Args:
        sets: In-domain sets, and others that must not get worse; development queries.
        lambdas: Shares of the tuned model; 0, 1 and ``default`` are added.
        default: The share to show as the default.

    Returns:
        A point per lambda, in rising order, with the scores per query.

    Raises:
        ConfigError: If there is no in-domain set.
        DataError: If a set has no query.
    """
    if not any(one.in_domain for one in sets):
        message = f"A lambda curve needs an in-domain set, found {[one.name for one in sets]} as others only."
        raise ConfigError(message)
    shares = sorted({0.0, 1.0, float(default), *map(float, lambdas)})
    base = _scores(sets, 0.0)
    return FusionCurve(
        points=tuple(_point(sets, share, _scores(sets, share), base) for share in shares), default=default
    )


def _scores(sets: Sequence[FusionSet], share: float) -> dict[str, Mapping[str, float]]:
    return {
        one.name: one.score(
            fuse(one.base_queries, one.tuned_queries, share),
            fuse(one.base_documents, one.tuned_documents, share),
        )
        for one in sets
    }


def _point(
    sets: Sequence[FusionSet],
    share: float,
    scores: Mapping[str, Mapping[str, float]],
    base: Mapping[str, Mapping[str, float]],
) -> FusionPoint:
    means = {one.name: _mean(one.name, scores[one.name]) for one in sets}
    inside = [means[one.name] for one in sets if one.in_domain]
    outside = [one.name for one in sets if not one.in_domain]
    losses = [100 * (_mean(name, base[name]) - means[name]) for name in outside]
    return FusionPoint(
        share=share,
        domain=sum(inside) / len(inside),
        general=sum(means[name] for name in outside) / len(outside) if outside else None,
        worst_loss=max(losses, default=0.0),
        scores=scores,
    )


def _mean(name: str, queries: Mapping[str, float]) -> float:
    if not queries:
        message = f"{name} has no scored query, so it has no mean. Check its qrels, or leave it out."
        raise DataError(message)
    return sum(queries.values()) / len(queries)
