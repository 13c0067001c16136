"""Losses of contrastive training, on unit vectors of a whole batch; no model and no state."""

from __future__ import annotations

from stm_training.finetune.losses.distillation import listwise_kl
from stm_training.finetune.losses.forms import hard_negatives_only, info_nce, stm_loss
from stm_training.finetune.losses.labels import Labels
from stm_training.finetune.losses.masking import too_close, with_false_negatives
from stm_training.finetune.losses.matryoshka import matryoshka
from stm_training.finetune.losses.objective import (
    Objective,
    build_objective,
    build_row_objective,
    check_learnable,
)

__all__ = [
    "Labels",
    "Objective",
    "build_objective",
    "build_row_objective",
    "check_learnable",
    "hard_negatives_only",
    "info_nce",
    "listwise_kl",
    "matryoshka",
    "stm_loss",
    "too_close",
    "with_false_negatives",
]
