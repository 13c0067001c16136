"""What an expert's stage left, as a change of the base's weights; and where experts start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stm_training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from stm_training.finetune.backbone import Backbone, BackboneSpec

ADAPTER, MODEL = "adapter", "model"
PRETRAIN = "pretrain"
START = "starts_from"


def starting_point(base: BackboneSpec, recipe: Recipe, run_folder: Path) -> tuple[BackboneSpec, str | None]:
    """What experts are trained from: the base, or the model that the stage before them pre-trained.

    Returns:
        What to load, and the name of the stage that it is of; ``None`` for the base itself.
    """
    if recipe.pretrain is None:
        return base, None
    return replace(base, source=str(run_folder / PRETRAIN / MODEL), revision=None), PRETRAIN


def member_deltas(folder: Path, base: Backbone) -> dict[str, Tensor]:
    """The full change of every weight that an expert makes to the base.

    Args:
        folder: The expert's stage: ``adapter/`` or ``model/``, and ``expert.json``.
        base: The untouched base.

    Returns:
        Name of a parameter -> its change, float32; what pre-training changed before is part of it.
    """
    from stm_training.finetune.full_weights import full_weight_deltas
    from stm_training.finetune.lora import full_deltas

    if (folder / MODEL).is_dir():
        return full_weight_deltas(folder / MODEL, base)
    deltas = full_deltas(folder / ADAPTER, base)
    record = json.loads((folder / "expert.json").read_text(encoding="utf-8"))
    if record.get(START) is None:
        return deltas
    before = full_deltas(folder.parent / record[START] / ADAPTER, base)
    for name, delta in before.items():
        deltas[name] = deltas[name] + delta if name in deltas else delta
    return deltas
