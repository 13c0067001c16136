"""Merge experts into a backbone in place, again and again, always starting from the base's own bytes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.finetune.backbone import Backbone
from stm_training.merge.curve import count_layers
from stm_training.merge.methods import Block, WholeParameter, merge_block, merge_parameter
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


def merge_weight(
    base: Tensor,
    deltas: Mapping[str, Tensor | None],
    recipe: MergeRecipe,
    *,
    name: str = "weight",
    layers: int = 1,
) -> Tensor:
    """Merge one parameter that fits into memory.

    Args:
        base: The base's weight.
        deltas: Expert name -> its change of this weight, ``None`` where it leaves it alone.
        recipe: The merge.
        name: The parameter's name: it says how deep it lies, and seeds DARE.
        layers: Count of the model's layers.

    Returns:
        The merged weight, float32; where nothing changes it may be the base itself, so do not write into it.
    """
    block = _block(
        base, {key: delta for key in recipe.weights if (delta := deltas.get(key)) is not None}, recipe
    )
    return merge_block(block, recipe, name=name, layers=layers)


def _block(base: Tensor, deltas: Mapping[str, Tensor | None], recipe: MergeRecipe) -> Block:
    nothing = torch.zeros(1, device=base.device).expand(base.shape)  # one number, whatever the shape
    changes = [deltas.get(name) for name in recipe.weights]
    return Block(
        base.float(),
        [nothing if delta is None else delta.to(base.device, torch.float32) for delta in changes],
    )


class MergedModel:
    """A backbone whose weights are replaced by merges and put back bit for bit.

    Each :meth:`apply` starts from a copy of the base's bytes, so that no rounding adds up over a search; what
    does not depend on the recipe (inner products, counts of magnitudes) is computed once. Merges are computed
    where the backbone's parameters lie. Use it as a context manager to be sure that the base comes back::

        with MergedModel(backbone, {"a": full_deltas(path_a, backbone), "b": ...}) as merged:
            for recipe in recipes:
                merged.apply(recipe)
                score(backbone)

    Args:
        backbone: The base, without an adapter attached.
        experts: Expert name -> full deltas by parameter name; see ``full_deltas``. An expert's own weight is
            the base's plus its delta, rounded to float32.

    Raises:
        MergeError: If an expert does not fit the base.
    """

    def __init__(self, backbone: Backbone, experts: Mapping[str, Deltas]) -> None:
        self.backbone = backbone
        self.experts = dict(experts)
        parameters: dict[str, Tensor] = dict(backbone.model.named_parameters())
        check_members(parameters, self.experts)
        touched = sorted({name for deltas in self.experts.values() for name in deltas})
        self._layers = count_layers(parameters)
        self._live = {name: parameters[name].data for name in touched}
        self._base = {name: value.clone() for name, value in self._live.items()}
        self._facts: dict[str, dict[Any, Any]] = {name: {} for name in touched}
        # Merging after merging would otherwise move them to the accelerator again and again.
        if backbone.device.type != "cpu" and _fits(backbone.device, self.experts):
            self.experts = {
                expert: {name: delta.to(backbone.device) for name, delta in deltas.items()}
                for expert, deltas in self.experts.items()
            }

    def apply(self, recipe: MergeRecipe) -> None:
        """Replace the backbone's weights by a merge.

        Args:
            recipe: Method, weights by expert, and what else the method takes.

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
        keys = list(recipe.weights)
        for name, base in self._base.items():
            changes = {key: self.experts[key].get(name) for key in keys}
            whole = WholeParameter(_block(base, changes, recipe), keys, self._facts[name])
            for merged in merge_parameter(name, whole, base.numel(), recipe, self._layers):
                self._live[name].copy_(merged)

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


def _fits(device: torch.device, experts: Mapping[str, Deltas]) -> bool:
    """Whether all deltas take at most half of the accelerator's free memory."""
    if device.type != "cuda":
        return False
    needed = sum(delta.nbytes for deltas in experts.values() for delta in deltas.values())
    return 2 * needed <= torch.cuda.mem_get_info(device)[0]
