"""How experts are merged, as it is searched, stored in the manifest, and applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["linear", "task_arithmetic", "ties", "slerp"]


class MergeRecipe(BaseModel):
    """One merge: a method, a weight per expert, and what else the method takes.

    Light on purpose: reading a manifest or planning a search needs no torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field(description="linear, task_arithmetic, ties or slerp.")
    weights: Mapping[str, float] = Field(min_length=1, description="Weight of each expert by name.")
    base_weight: float = Field(0.0, ge=0, description="linear: the untouched base's weight as a member.")
    density: float | Mapping[str, float] = Field(
        1.0,
        description="ties: share of an expert's largest changes that is kept; one number, or one per expert.",
    )
    scale: float = Field(1.0, gt=0, description="ties: factor on the merged change (lambda).")

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        _check_densities(self.densities())
        if self.method == "linear":
            total = self.base_weight + sum(self.weights.values())
            if total <= 0:
                message = f"linear weights must add up to more than 0, found {total}"
                raise ValueError(message)
        if self.method == "slerp" and (len(self.weights) > 2 or sum(self.weights.values()) <= 0):
            message = (
                f"slerp goes between two members with weights above 0 in sum, found {dict(self.weights)}"
            )
            raise ValueError(message)
        return self

    def densities(self) -> dict[str, float]:
        """Density of each expert by name.

        Raises:
            ValueError: If densities are given by name and an expert is without one.
        """
        if not isinstance(self.density, Mapping):
            return dict.fromkeys(self.weights, float(self.density))
        missing = sorted(set(self.weights) - set(self.density))
        if missing:
            message = f"density has no value for the experts {missing}"
            raise ValueError(message)
        return {name: float(self.density[name]) for name in self.weights}


def _check_densities(densities: Mapping[str, float]) -> None:
    for name, density in densities.items():
        if not 0 < density <= 1:
            message = f"density of {name} must be above 0 and at most 1, found {density}"
            raise ValueError(message)
