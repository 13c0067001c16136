"""The settings of one expert's training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# No torch here: recipes and light commands read these settings.
TOKEN_BUDGET = 4096
FEWEST_STEPS_BETWEEN_CHECKPOINTS = 20


def usual_save_steps(steps: int) -> int:
    """Steps between checkpoints: a tenth of all is the most that a kill costs, and none comes too soon."""
    return max(FEWEST_STEPS_BETWEEN_CHECKPOINTS, steps // 10)


class TrainSettings(BaseModel):
    """How one expert is trained; defaults are STM's (arXiv 2602.04731, section 4) where it gives one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["stm", "info_nce", "hard_negatives", "distill"] = Field(
        "stm",
        description="stm: own hard negatives + in-batch positives; info_nce: all hard negatives too; "
        "hard_negatives: own hard negatives only; distill: listwise KL against the pairs' scores.",
    )
    temperature: float = Field(0.05, gt=0, description="Divides the cosine similarities.")
    contrastive_weight: float = Field(
        0.1, ge=0, description="distill: weight of the stm loss beside the KL divergence."
    )
    teacher_temperature: float = Field(
        0.3, gt=0, description="distill: divides the teacher's scores; temperature is the student's."
    )
    matryoshka: tuple[int, ...] = Field(
        (), description="Vector lengths that shall work when cut off, beside the full one; () for none."
    )
    hardness_weight: float = Field(
        0.0, ge=0, description="Weighs a negative by exp(this * its similarity); 0: all negatives alike."
    )
    false_negatives: Literal["known", "score", "guide"] = Field(
        "known",
        description="Which negatives are left out: known relevant ones; also those that score within "
        "false_negative_margin of the positive; or that do so under the base model (guide).",
    )
    false_negative_margin: float = Field(
        0.0, description="score and guide: leave out a negative above (positive - this), in cosine."
    )
    batch_size: int = Field(32, ge=2, description="Pairs per optimiser step.")
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate of AdamW.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs, where steps is null.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps, over as many passes as it takes.")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up; at most a tenth of all steps.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of the LoRA matrices.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    lora_rank: int = Field(16, ge=1, description="Rank of the LoRA matrices, on all linear layers.")
    lora_alpha: int = Field(32, ge=1, description="The LoRA update is scaled by alpha / rank.")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the LoRA matrices; slow on a CPU."
    )
    hard_negatives: int = Field(1, ge=0, description="Hard negatives used per pair, at most.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Of the products; bf16 where the device has it. LoRA weights and loss stay fp32."
    )
    adapter: Literal["lora", "full"] = Field(
        "lora", description="lora: low-rank updates of all linear layers; full: every weight is trained."
    )
    grad_cache: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Encode a batch in micro-batches twice instead of keeping it in memory; auto: where the "
        "memory probe finds that it does not fit.",
    )
    token_budget: int | None = Field(
        None, ge=1, description="Padded tokens of a forward pass; null: a probe of the memory chooses it."
    )
    homogeneous: bool = Field(False, description="Every batch holds pairs of one source only.")
    source_temperature: float | None = Field(
        None,
        ge=1,
        description="Draw sources in proportion to size^(1/this); null: every pair once per pass.",
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Score the development queries every so many steps; null: never."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many scorings without a better one; null: never."
    )
    anchor_weight: float = Field(
        0.0, ge=0, description="Weight of the distance to the base's vectors on general texts; 0: none."
    )
    anchor_batch: int = Field(8, ge=1, description="General texts per step, where anchor_weight is above 0.")
    save_steps: int | None = Field(None, ge=1, description="Write a checkpoint every so many steps.")
    average_checkpoints: int = Field(
        1,
        ge=1,
        description="Keep the mean of the last so many checkpoints (see save_steps) instead of the last "
        "weights; a LoRA adapter's rank grows by this factor.",
    )
