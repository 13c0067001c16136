"""The settings of one expert's training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# No torch here: recipes and light commands read these settings.
TOKEN_BUDGET = 4096


class TrainSettings(BaseModel):
    """How one expert is trained; defaults are STM's (arXiv 2602.04731, section 4) where it gives one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["stm", "info_nce"] = Field(
        "stm", description="stm: own hard negatives + in-batch positives; info_nce: all hard negatives too."
    )
    temperature: float = Field(0.05, gt=0, description="Divides the cosine similarities.")
    batch_size: int = Field(32, ge=2, description="Pairs per optimiser step.")
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate of AdamW.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs, where max_steps is not set.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps, over as many passes as it takes.")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up; at most a tenth of all steps.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of the LoRA matrices.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    rank: int = Field(16, ge=1, description="Rank of the LoRA matrices, on all linear layers.")
    alpha: int = Field(32, ge=1, description="The LoRA update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices; slow on a CPU.")
    hard_negatives: int = Field(1, ge=0, description="Hard negatives used per pair, at most.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Of the products; bf16 where the device has it. LoRA weights and loss stay fp32."
    )
    token_budget: int = Field(
        TOKEN_BUDGET, ge=1, description="Padded tokens of a forward pass; texts of like length go together."
    )
    save_steps: int | None = Field(None, ge=1, description="Write a checkpoint every so many steps.")
