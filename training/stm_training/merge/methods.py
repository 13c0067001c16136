"""Merge methods on one tensor at a time.

Every function takes the base's weight and the experts' full deltas (expert minus base) of one parameter and
returns the merged weight in float32; the caller casts last. One tensor at a time bounds the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Below this angle slerp divides by almost nothing; the chord is then as good as the arc.
_PARALLEL = 0.9995


def linear(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], *, base_weight: float = 0.0
) -> Tensor:
    """Weighted mean of the experts' weights and, with ``base_weight``, the base's.

    Model soups, Wortsman et al. 2022 (arXiv 2203.05482), section 2; STM's best method.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert; together with ``base_weight`` they add up to more than 0.
        base_weight: Weight of the untouched base as a member.
    """
    total = base_weight + sum(weights)
    # The members' mean is the base plus the mean of deltas, in which the base's own delta is zero.
    return _add(base, deltas, [weight / total for weight in weights])


def task_arithmetic(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Base plus the weighted sum of deltas; weights need not add up to 1.

    Ilharco et al. 2023 (arXiv 2212.04089), section 2.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert.
    """
    return _add(base, deltas, weights)


def ties(
    base: Tensor,
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    scale: float = 1.0,
) -> Tensor:
    """Trim small changes, elect a sign per number, and average the weighted changes that agree with it.

    Yadav et al. 2023 (arXiv 2306.01708), section 3 and algorithm 1, with a weight per expert: the sign is
    that of the weighted sum, the mean is weighted.

    Args:
        base: The base's weight, any shape and floating type.
        deltas: Experts minus base, each of the base's shape.
        weights: One per expert.
        densities: Share of each expert's numbers that is kept, the largest ones, in (0, 1].
        scale: Factor on the merged change (lambda in the paper): weights are relative, this is not.
    """
    trimmed = torch.stack(
        [_trim(delta.float(), density) for delta, density in zip(deltas, densities, strict=True)]
    )
    factors = torch.tensor(weights, dtype=torch.float32, device=base.device)
    factors = factors.reshape(-1, *(1 for _ in base.shape))
    weighted = trimmed * factors
    agrees = (weighted.sign() == weighted.sum(dim=0).sign()) & (weighted != 0)
    share = (factors.abs() * agrees).sum(dim=0)
    mean = (weighted * agrees).sum(dim=0) / torch.where(share == 0, torch.ones_like(share), share)
    return base.float() + scale * mean


def slerp(first: Tensor, second: Tensor, position: float) -> Tensor:
    """Go from one weight to another along the arc between their directions.

    Shoemake 1985, "Animating rotation with quaternion curves", equation for Slerp, on the flattened tensors.

    Args:
        first: A weight, any shape and floating type.
        second: Another, of that shape.
        position: 0 gives ``first``, 1 gives ``second``.
    """
    start, end = first.float(), second.float()
    norms = start.norm() * end.norm()
    cosine = float((start * end).sum() / norms) if float(norms) > 0 else 1.0
    if abs(cosine) > _PARALLEL or position in (0.0, 1.0):
        return torch.lerp(start, end, position)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    left = float(torch.sin((1 - position) * angle) / torch.sin(angle))
    right = float(torch.sin(position * angle) / torch.sin(angle))
    return left * start + right * end


def _add(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    # The changes are summed first: they are small beside the base, and would lose bits one by one.
    change = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
    for delta, weight in zip(deltas, weights, strict=True):
        change.add_(delta.to(base.device, torch.float32), alpha=weight)
    return base.float() + change


def _trim(delta: Tensor, density: float) -> Tensor:
    """Keep the ``density`` share of numbers that are largest in magnitude; the rest become zero."""
    if density >= 1:
        return delta
    kept = max(1, round(density * delta.numel()))
    chosen = delta.abs().flatten().topk(kept, sorted=False).indices
    mask = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    mask[chosen] = True
    return torch.where(mask.reshape(delta.shape), delta, torch.zeros_like(delta))
