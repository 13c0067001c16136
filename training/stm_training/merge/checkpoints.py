"""Average the checkpoints of one run: smoother than its last one (Izmailov et al. 2018, arXiv 1803.05407)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stm_retriever.errors import MergeError
from stm_training.merge.recipe import MergeRecipe

if TYPE_CHECKING:
    from torch import Tensor

_FOLDER = re.compile(r"checkpoint-(\d+)")


def checkpoint_folders(run: Path) -> list[Path]:
    """Checkpoints in a folder (``checkpoint-<step>``), oldest first.

    Raises:
        MergeError: If there is none.
    """
    found = [(int(match[1]), path) for path in run.glob("*") if (match := _FOLDER.fullmatch(path.name))]
    if not found:
        message = (
            f"{str(run)!r} holds no folder checkpoint-<step>, so there is nothing to average. Train with "
            f"save_steps, and point to the folder that holds the checkpoints."
        )
        raise MergeError(message)
    return [path for _, path in sorted(found)]


def checkpoint_weights(count: int, *, decay: float | None = None) -> list[float]:
    """Weights of checkpoints, oldest first; they add up to 1.

    Args:
        count: How many there are.
        decay: ``None``: equal weights. Else an exponential moving average that starts at the oldest
            checkpoint and keeps this share of itself at each later one, at least 0 and below 1.

    Raises:
        MergeError: If there is no checkpoint, or the decay is out of range.
    """
    if count < 1 or (decay is not None and not 0 <= decay < 1):
        message = (
            f"Averaging needs at least one checkpoint and a decay from 0 to below 1, found {count} and "
            f"a decay of {decay}."
        )
        raise MergeError(message)
    if decay is None:
        return [1 / count] * count
    weights = [1.0]
    for _ in range(count - 1):
        weights = [weight * decay for weight in weights] + [1 - decay]
    return weights


def average_recipe(
    names: Sequence[str], *, decay: float | None = None, base_weight: float = 0.0
) -> MergeRecipe:
    """The linear merge that averages checkpoints.

    Args:
        names: The checkpoints as members of a merge, oldest first.
        decay: See :func:`checkpoint_weights`.
        base_weight: Weight of the base, beside 1 for all checkpoints together.

    Raises:
        MergeError: See :func:`checkpoint_weights`; or if a name comes twice.
    """
    weights = dict(zip(names, checkpoint_weights(len(names), decay=decay), strict=True))
    if len(weights) < len(names):
        message = f"Checkpoints need names of their own, found {list(names)}."
        raise MergeError(message)
    return MergeRecipe(method="linear", weights=weights, base_weight=base_weight)


def average_deltas(
    checkpoints: Iterable[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Average checkpoints into one expert's deltas, holding one of them at a time.

    Args:
        checkpoints: Full deltas of each, oldest first, made one by one where it is a generator; a parameter
            that one of them lacks is unchanged in it.
        weights: One per checkpoint; see :func:`checkpoint_weights`.

    Returns:
        Parameter name -> delta, float32.

    Raises:
        MergeError: If two checkpoints have other shapes, or there are not as many as weights.
    """
    average: dict[str, Tensor] = {}
    done = 0
    for done, deltas in enumerate(checkpoints, start=1):
        if done > len(weights):
            break
        for name, delta in deltas.items():
            share = delta.float() * weights[done - 1]
            if name in average and average[name].shape != share.shape:
                message = (
                    f"Checkpoint {done} changes {name} with shape {tuple(share.shape)}, an earlier one with "
                    f"{tuple(average[name].shape)}: they are of different models. Average those of one run."
                )
                raise MergeError(message)
            average[name] = average[name].add_(share) if name in average else share
    if done != len(weights):
        message = f"There are {len(weights)} weights for {done} checkpoints or more; give one for each."
        raise MergeError(message)
    return average
