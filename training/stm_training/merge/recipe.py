"""How experts are merged, as it is searched, stored in the manifest, and applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stm_training.merge.curve import curve_at, depth_of, knots

Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "model_stock",
]

READS: Mapping[Method, frozenset[str]] = {
    "linear": frozenset({"base_weight"}),
    "slerp": frozenset({"base_weight"}),
    "task_arithmetic": frozenset(),
    "ties": frozenset({"density", "scale"}),
    "dare_linear": frozenset({"density", "scale", "seed"}),
    "dare_ties": frozenset({"density", "scale", "seed"}),
    "breadcrumbs": frozenset({"density", "gamma", "scale"}),
    "model_stock": frozenset(),
}
"""Fields beside ``weights``, ``curve`` and ``base_slerp`` that a method reads; others keep their defaults."""

_OPTIONAL = ("base_weight", "density", "scale", "gamma", "seed")


class MergeRecipe(BaseModel):
    """One merge: a method, a weight per expert, and what else the method takes.

    Light on purpose: reading a manifest or planning a search needs no torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method = Field(
        description="linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, breadcrumbs, model_stock."
    )
    weights: Mapping[str, float] = Field(
        min_length=1,
        description="Weight of each expert by name. linear and model_stock: relative; slerp: relative, one "
        "expert after the other in this order; ties, dare_ties: relative, scale sets the size; "
        "task_arithmetic, dare_linear, breadcrumbs: factors on the experts' changes.",
    )
    base_weight: float = Field(
        0.0, ge=0, description="linear, slerp: the untouched base's weight as a member (the first)."
    )
    density: float | Mapping[str, float] = Field(
        1.0,
        description="ties: share of an expert's largest changes that is kept; dare: share kept at random; "
        "breadcrumbs: share kept between the tails; one number, or one per expert.",
    )
    scale: float = Field(
        1.0, gt=0, description="ties, dare, breadcrumbs: factor on the merged change (lambda)."
    )
    gamma: float | Mapping[str, float] = Field(
        0.0,
        description="breadcrumbs: share of an expert's largest changes that is dropped, for instance 0.01; "
        "the smallest 1 - density - gamma go too. One number, or one per expert.",
    )
    seed: int = Field(0, ge=0, description="dare: seeds which changes are dropped.")
    curve: tuple[float, ...] | Mapping[str, tuple[float, ...]] | None = Field(
        None,
        description="Factor on the weights by depth: control points from the first layer to the last, "
        "straight lines between; for all experts, or by name (others stay as they are).",
    )
    base_slerp: float | Mapping[str, float] | None = Field(
        None,
        description="Before the merge each expert is replaced by a point on the arc from the base (0) to "
        "itself (1): one number, or by name (others stay as they are).",
    )

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        _check_names(self)
        _check_unread(self)
        _check_shares(self)
        _check_curve(self)
        if self.method in ("linear", "slerp"):
            _check_sum(self)
        if self.method in ("slerp", "model_stock"):
            _check_signs(self)
        if self.method == "model_stock" and sum(weight > 0 for weight in self.weights.values()) < 2:
            message = (
                f"model_stock needs the angle between at least two experts with a weight above 0, found "
                f"{dict(self.weights)}"
            )
            raise ValueError(message)
        return self

    def densities(self) -> dict[str, float]:
        """Density of each expert by name.

        Raises:
            ValueError: If densities are given by name and an expert is without one.
        """
        return _by_name("density", self.density, self.weights)

    def gammas(self) -> dict[str, float]:
        """Share of each expert's largest changes that is dropped, by name.

        Raises:
            ValueError: If they are given by name and an expert is without one.
        """
        return _by_name("gamma", self.gamma, self.weights)

    def positions(self) -> dict[str, float]:
        """Where each expert stands on the arc from the base (0) to itself (1), by name."""
        if isinstance(self.base_slerp, Mapping):
            return {name: float(self.base_slerp.get(name, 1.0)) for name in self.weights}
        return dict.fromkeys(self.weights, 1.0 if self.base_slerp is None else float(self.base_slerp))

    def weights_for(self, name: str, layers: int) -> list[float]:
        """Weights for one parameter, with the curves at its depth.

        Args:
            name: The parameter's name.
            layers: Count of the model's layers; see ``merge.curve.count_layers``.

        Returns:
            One weight per expert, in the order of ``weights``.
        """
        return self._weights_at(0.0 if self.curve is None else depth_of(name, layers))

    def _weights_at(self, depth: float) -> list[float]:
        if self.curve is None:
            return [float(weight) for weight in self.weights.values()]
        curves = self._curves()
        return [
            weight if (points := curves.get(name)) is None else weight * curve_at(points, depth)
            for name, weight in self.weights.items()
        ]

    def _curves(self) -> dict[str, Sequence[float]]:
        if self.curve is None:
            return {}
        return (
            dict(self.curve) if isinstance(self.curve, Mapping) else dict.fromkeys(self.weights, self.curve)
        )


def _by_name(
    field: str, value: float | Mapping[str, float], weights: Mapping[str, float]
) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(weights, float(value))
    missing = sorted(set(weights) - set(value))
    if missing:
        message = f"{field} has no value for the experts {missing}"
        raise ValueError(message)
    return {name: float(value[name]) for name in weights}


def _check_names(recipe: MergeRecipe) -> None:
    for field in ("curve", "base_slerp"):
        value = getattr(recipe, field)
        unknown = sorted(set(value) - set(recipe.weights)) if isinstance(value, Mapping) else []
        if unknown:
            message = f"{field} names {unknown}, but the experts with a weight are {sorted(recipe.weights)}"
            raise ValueError(message)


def _check_unread(recipe: MergeRecipe) -> None:
    reads = READS[recipe.method]
    for field in _OPTIONAL:
        value, default = getattr(recipe, field), MergeRecipe.model_fields[field].default
        if field not in reads and value != default:
            users = [method for method, fields in READS.items() if field in fields]
            message = (
                f"{recipe.method} does not read {field}, found {value}: leave it out, or use one of {users}"
            )
            raise ValueError(message)


def _check_shares(recipe: MergeRecipe) -> None:
    gammas = recipe.gammas()
    for name, density in recipe.densities().items():
        if not 0 < density <= 1:
            message = f"density of {name} must be above 0 and at most 1, found {density}"
            raise ValueError(message)
        # A hair of slack: 0.9 + 0.1 is no problem, whatever binary makes of it.
        if not 0 <= gammas[name] < 1 or density + gammas[name] > 1 + 1e-9:
            message = (
                f"gamma of {name} must be at least 0 and leave room for density, found gamma "
                f"{gammas[name]} and density {density}, together above 1"
            )
            raise ValueError(message)
    for name, position in recipe.positions().items():
        if not 0 <= position <= 1:
            message = f"base_slerp of {name} must be from 0 (the base) to 1 (the expert), found {position}"
            raise ValueError(message)


def _check_curve(recipe: MergeRecipe) -> None:
    for name, points in recipe._curves().items():
        if not points or min(points) < 0:
            message = f"curve of {name} needs at least one control point and none below 0, found {points}"
            raise ValueError(message)
    if recipe.curve is not None and recipe.method == "model_stock":
        message = "model_stock finds its own weight in each layer from the angles: leave curve out"
        raise ValueError(message)


def _check_sum(recipe: MergeRecipe) -> None:
    """Weights that are divided by their sum need one above 0, at every depth."""
    for depth in knots(recipe._curves().values()):
        total = recipe.base_weight + sum(recipe._weights_at(depth))
        if total <= 0:
            where = "" if recipe.curve is None else f" at depth {depth:g}"
            message = f"{recipe.method} weights must add up to more than 0, found {total}{where}"
            raise ValueError(message)


def _check_signs(recipe: MergeRecipe) -> None:
    negative = {name: weight for name, weight in recipe.weights.items() if weight < 0}
    if negative:
        message = f"{recipe.method} weights must not be below 0, found {negative}"
        raise ValueError(message)
