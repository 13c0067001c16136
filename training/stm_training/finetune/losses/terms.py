"""What a loss is made of: one value per row, and which rows count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One summand of a loss over b rows.

    Attributes:
        values: (b,) float; finite also in rows that do not count.
        counted: (b,) bool; rows that have something to learn from. ``None``: all.
        weight: Of this summand.
    """

    values: Tensor
    counted: Tensor | None = None
    weight: float = 1.0

    def rows(self) -> Tensor:
        """(b,) weighted value of each row; 0 where it does not count."""
        values = self.values if self.counted is None else self.values * self.counted
        return values if self.weight == 1.0 else self.weight * values

    def mean(self) -> Tensor:
        """The weighted mean over the rows that count; 0 with zero gradients if there are none."""
        if self.counted is None:
            return self.rows().mean()
        return self.rows().sum() / self.counted.sum().clamp(min=1)


def total(terms: Sequence[Term]) -> Tensor:
    """The loss of the batch, a scalar."""
    return torch.stack([term.mean() for term in terms]).sum()


def per_row(terms: Sequence[Term]) -> Tensor:
    """(b,) each row's own loss."""
    return torch.stack([term.rows() for term in terms]).sum(dim=0)
