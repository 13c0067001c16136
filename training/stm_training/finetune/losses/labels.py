"""What is known about the rows of a batch, beside their vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """What a loss knows of b rows with m hard negatives in all; every tensor on the vectors' device.

    Attributes:
        negative_counts: (b,) int64; row i's own negatives follow those of the rows before, m in all.
        excluded: (b, b) bool; positive j is no negative of query i (known to be relevant, or the same
            document). The diagonal is ignored.
        excluded_negatives: (b, m) bool; negative j is no negative of query i.
        teacher_positive: (b,) float32, the teacher's score of each row's positive, any scale; NaN where a row
            has none. ``None``: no row has scores.
        teacher_negatives: (m,) float32, the teacher's score of each negative for its own row's query; NaN
            where it has none.
        guide_positives: (b, b) float32, cosine of query i and positive j under the guide model.
        guide_negatives: (b, m) float32, cosine of query i and negative j under the guide model.
    """

    negative_counts: Tensor
    excluded: Tensor
    excluded_negatives: Tensor
    teacher_positive: Tensor | None = None
    teacher_negatives: Tensor | None = None
    guide_positives: Tensor | None = None
    guide_negatives: Tensor | None = None

    def to(self, device: torch.device | str) -> Labels:
        """The same labels on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in values.items()}
        return Labels(**moved)

    @classmethod
    def plain(cls, negative_counts: Tensor) -> Labels:
        """Labels of rows of which nothing is known but how many negatives each has."""
        rows, negatives = len(negative_counts), int(negative_counts.sum())
        device = negative_counts.device
        return cls(
            negative_counts=negative_counts,
            excluded=torch.zeros(rows, rows, dtype=torch.bool, device=device),
            excluded_negatives=torch.zeros(rows, negatives, dtype=torch.bool, device=device),
        )

    def own_negatives(self) -> tuple[Tensor, Tensor] | None:
        """Where each row's own negatives lie among the m.

        Returns:
            Places (b, most) int64 and which of them are there (b, most) bool; absent ones point to place 0.
            ``None`` if no row has a negative.
        """
        counts = self.negative_counts
        most = int(counts.max()) if len(counts) else 0
        if most == 0:
            return None
        number = torch.arange(most, device=counts.device)[None]
        present = number < counts[:, None]
        places = (counts.cumsum(0) - counts)[:, None] + number
        return torch.where(present, places, 0), present
