"""From a trial's parameters to a merge: which parameters each method has, under names that stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stm_retriever.errors import ConfigError
from stm_training.merge.recipe import READS, MergeRecipe, Method
from stm_training.merge.search.settings import SearchSection

if TYPE_CHECKING:
    import optuna

Params = Mapping[str, Any]
"""Parameter name -> value, as Optuna stores it: ``method``, ``weight:<expert>``, ``<method>:density``."""

METHOD = "method"
# Their weights are relative to each other: the size of the merged change is a factor of its own.
RELATIVE = frozenset({"ties", "dare_ties"})
# It takes its shares from the tensors; a weight only says whether an expert is a member.
WITHOUT_WEIGHTS = frozenset({"model_stock"})

# A drawn weight this small is a rounding of "not at all", which is cheaper and often better.
_NEGLIGIBLE = 0.05


class Space:
    """What a search may set.

    Args:
        settings: The search's settings.
        experts: Names of the experts, in their order.

    Raises:
        ConfigError: If there is no expert, or one is there twice.
    """

    def __init__(self, settings: SearchSection, experts: Sequence[str]) -> None:
        if not experts or len(set(experts)) != len(experts):
            found = f"the experts {list(experts)}" if experts else "no expert"
            message = f"A search needs experts of different names, found {found}. Name each expert once."
            raise ConfigError(message)
        self.settings = settings
        self.experts = tuple(experts)
        self.methods = tuple(dict.fromkeys(settings.methods))
        if "model_stock" in self.methods and len(experts) < 2:
            message = (
                f"model_stock needs the angle between two experts, found {list(experts)} alone. Take it out "
                f"of the methods, or add an expert."
            )
            raise ConfigError(message)

    def parameters(self, method: Method) -> dict[str, tuple[float, ...]]:
        """Names and listed values of a method's parameters, in a fixed order."""
        settings, reads = self.settings, READS[method]
        weights = (0.0, 1.0) if method in WITHOUT_WEIGHTS else settings.weights
        found = {f"weight:{expert}": weights for expert in self.experts}
        if "density" in reads and settings.density_per_expert:
            found |= {f"{method}:density:{expert}": settings.densities for expert in self.experts}
        elif "density" in reads:
            found[f"{method}:density"] = settings.densities
        if "base_weight" in reads:
            found[f"{method}:base_weight"] = settings.base_weights
        if "gamma" in reads:
            found[f"{method}:gamma"] = settings.gammas
        if settings.base_slerps != (1.0,):
            found[f"{method}:base_slerp"] = settings.base_slerps
        if settings.depth_slopes != (0.0,) and method not in WITHOUT_WEIGHTS:
            found[f"{method}:depth_slope"] = settings.depth_slopes
        return found

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask Optuna's sampler for all parameters of a trial."""
        method: Method = trial.suggest_categorical(METHOD, self.methods)  # type: ignore[assignment]
        values = {
            name: trial.suggest_float(name, min(listed), max(listed))
            for name, listed in self.parameters(method).items()
        }
        return {METHOD: method, **values}

    def recipe(self, params: Params) -> MergeRecipe:
        """The merge that a trial's parameters mean, in one form of the many that mean the same.

        Weights of ``linear`` and ``slerp`` are scaled to add up to 1. Those of ``ties`` and ``dare_ties`` are
        relative, so the largest one scales the merged change. ``model_stock`` has none.
        """
        method: Method = params[METHOD]
        weights = self._weights(method, params)
        values = {
            name.removeprefix(f"{method}:"): _tidy(float(params[name]), listed)
            for name, listed in self.parameters(method).items()
            if not name.startswith("weight:")
        }
        fields: dict[str, Any] = {"method": method, "weights": weights}
        if "density" in READS[method]:
            fields |= self._densities(values, weights)
        if "base_weight" in READS[method]:
            fields |= _shares(method, weights, values["base_weight"])
        if method in RELATIVE:
            fields["scale"] = max(weights.values())
        if values.get("base_slerp", 1.0) != 1.0:
            fields["base_slerp"] = values["base_slerp"]
        if slope := values.get("depth_slope", 0.0):
            fields["curve"] = (round(1 - slope, 4), round(1 + slope, 4))
        return MergeRecipe.model_validate(fields)

    def _weights(self, method: Method, params: Params) -> dict[str, float]:
        drawn = {expert: float(params[f"weight:{expert}"]) for expert in self.experts}
        if method in WITHOUT_WEIGHTS:
            members = [expert for expert, weight in drawn.items() if weight >= max(drawn.values()) / 2]
            return dict.fromkeys(members if len(members) > 1 else self.experts, 1.0)
        listed = self.settings.weights
        used = {expert: weight for expert, value in drawn.items() if (weight := _tidy(value, listed))}
        if used:
            return used
        # Nothing but negligible weights: the largest stays, since a merge has a member.
        largest = max(drawn, key=lambda expert: drawn[expert])
        return {largest: max(0.01, round(drawn[largest], 4))}

    def _densities(self, values: Mapping[str, float], members: Mapping[str, float]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        room = 1.0
        if "gamma" in values:
            fields["gamma"] = values["gamma"]
            room = 1.0 - values["gamma"]  # both tails and what is kept between them make a whole
        if "density" in values:
            return {**fields, "density": min(room, values["density"])}
        return {**fields, "density": {name: min(room, values[f"density:{name}"]) for name in members}}

    def is_empty(self, params: Params) -> bool:
        """Whether no expert has a weight: that is the base, which is scored anyway."""
        return not any(float(params[f"weight:{expert}"]) for expert in self.experts)


def _shares(method: Method, weights: Mapping[str, float], base_weight: float) -> dict[str, Any]:
    """Weights that add up to 1, and the base's beside them."""
    total = sum(weights.values())
    if method == "slerp" and len(weights) == 1 and not base_weight:  # between the base and one expert
        share = min(1.0, total)
        return {"weights": dict.fromkeys(weights, share), "base_weight": round(1 - share, 4)}
    shares = {name: round(weight / total, 4) for name, weight in weights.items()}
    return {"weights": shares, "base_weight": base_weight}


def _tidy(value: float, listed: Sequence[float]) -> float:
    if value in listed:
        return value
    return 0.0 if 0.0 in listed and abs(value) < _NEGLIGIBLE else round(value, 4)
