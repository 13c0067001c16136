"""Merge experts into a backbone in place, again and again, always starting from the base's own bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.finetune.backbone import Backbone
from stm_training.merge.methods import linear, slerp, task_arithmetic, ties
from stm_training.merge.recipe import MergeRecipe

Deltas = Mapping[str, Tensor]


def check_members(base: Mapping[str, Tensor], experts: Mapping[str, Deltas]) -> None:
    """Refuse experts that do not fit the base.

    Args:
        base: Parameter name -> weight.
        experts: Expert name -> parameter name -> delta.

    Raises:
        MergeError: If there is no expert, or a delta has no weight to go to, another shape, or NaN or Inf.
    """
    if not experts:
        message = "There is no expert to merge. Train at least one, or ship the base as it is."
        raise MergeError(message)
    for expert, deltas in experts.items():
        for name, delta in deltas.items():
            _check_delta(expert, name, delta, base.get(name))


def _check_delta(expert: str, name: str, delta: Tensor, weight: Tensor | None) -> None:
    if weight is None or weight.shape != delta.shape:
        found = "no such weight" if weight is None else f"shape {tuple(weight.shape)}"
        message = (
            f"Expert {expert!r} changes {name} with shape {tuple(delta.shape)}, but the base has {found}: "
            f"they are of different models. Merge only experts that were trained from this base."
        )
        raise MergeError(message)
    broken = int((~torch.isfinite(delta)).sum())
    if broken:
        message = (
            f"Expert {expert!r} has {broken} of {delta.numel()} numbers NaN or infinite in {name}; "
            f"the merged model would give NaN. Train that expert again with a lower learning rate, or leave "
            f"it out."
        )
        raise MergeError(message)


def merge_weight(base: Tensor, deltas: Mapping[str, Tensor | None], recipe: MergeRecipe) -> Tensor:
    """Merge one parameter.

    Args:
        base: The base's weight.
        deltas: Expert name -> its change of this weight, ``None`` where it leaves it alone.
        recipe: The merge.

    Returns:
        The merged weight, float32.
    """
    names = list(recipe.weights)
    weights = [float(recipe.weights[name]) for name in names]
    zero = torch.zeros_like(base, dtype=torch.float32)
    members = [zero if (delta := deltas.get(name)) is None else delta for name in names]
    if recipe.method == "linear":
        return linear(base, members, weights, base_weight=recipe.base_weight)
    if recipe.method == "task_arithmetic":
        return task_arithmetic(base, members, weights)
    if recipe.method == "ties":
        densities = recipe.densities()
        return ties(base, members, weights, [densities[name] for name in names], scale=recipe.scale)
    return _slerp(base, members, weights, recipe.base_weight)


def _slerp(base: Tensor, members: Sequence[Tensor], weights: Sequence[float], base_weight: float) -> Tensor:
    experts = [base.float() + member for member in members]
    if len(experts) == 1:  # the base is the other end
        experts, weights = [base, *experts], [base_weight, *weights]
    return slerp(experts[0], experts[1], weights[1] / sum(weights))


class MergedModel:
    """A backbone whose weights are replaced by merges and put back bit for bit.

    Each :meth:`apply` starts from a copy of the base's bytes, so that no rounding adds up over a search.
    Use it as a context manager to be sure that the base comes back::

        with MergedModel(backbone, {"a": full_deltas(path_a, backbone), "b": ...}) as merged:
            for recipe in recipes:
                merged.apply(recipe)
                score(backbone)

    Args:
        backbone: The base, without an adapter attached.
        experts: Expert name -> full deltas by parameter name; see ``full_deltas``.

    Raises:
        MergeError: If an expert does not fit the base.
    """

    def __init__(self, backbone: Backbone, experts: Mapping[str, Deltas]) -> None:
        self.backbone = backbone
        self.experts = dict(experts)
        parameters: dict[str, Tensor] = dict(backbone.model.named_parameters())
        check_members(parameters, self.experts)
        touched = sorted({name for deltas in self.experts.values() for name in deltas})
        self._live = {name: parameters[name].data for name in touched}
        self._base = {name: value.clone() for name, value in self._live.items()}

    def apply(self, recipe: MergeRecipe) -> None:
        """Replace the backbone's weights by a merge.

        Args:
            recipe: Method, weights by expert, density.

        Raises:
            MergeError: If the recipe names an expert that is not there.
        """
        unknown = sorted(set(recipe.weights) - set(self.experts))
        if unknown:
            message = (
                f"The merge names the experts {unknown}, but there are only {sorted(self.experts)}. "
                f"Train them first, or take them out of the weights."
            )
            raise MergeError(message)
        for name, base in self._base.items():
            deltas = {expert: self.experts[expert].get(name) for expert in recipe.weights}
            self._live[name].copy_(merge_weight(base, deltas, recipe))

    def restore(self) -> None:
        """Put the base's own bytes back."""
        for name, base in self._base.items():
            self._live[name].copy_(base)

    def __enter__(self) -> MergedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
