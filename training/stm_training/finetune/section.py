"""A recipe's ``train`` and ``experts`` sections: what every expert is trained on, and how."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stm_training.finetune.settings import TrainSettings

_OWN = ("max_length", "anchor", "select")  # keys of the section that one training does not take


class SelectSection(BaseModel):
    """Train only on pairs whose gradient, after a short probe, is neither among the smallest nor the largest.

    Beside every expert that is trained on such a choice, one is trained on a random choice of equal size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    drop_low: float = Field(0.1, ge=0, lt=1, description="Share of pairs dropped at the low end.")
    drop_high: float = Field(0.1, ge=0, lt=1, description="Share of pairs dropped at the high end.")
    probe_steps: int = Field(10, ge=1, description="Steps of the probe; its weights are thrown away.")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.drop_low + self.drop_high >= 1:
            message = f"drop_low {self.drop_low:g} and drop_high {self.drop_high:g} leave no pair"
            raise ValueError(message)
        return self


class TrainSection(TrainSettings):
    """Settings of the contrastive training, shared by all experts unless they set their own."""

    steps: int | None = Field(100, ge=1, description="Optimiser steps; null: as many as epochs take.")
    max_length: int | None = Field(None, ge=8, description="Tokens per text in training; null: the model's.")
    anchor: str | None = Field(
        None, description="BEIR folder or JSONL of general texts for anchor_weight; null: the corpus."
    )
    select: SelectSection | None = Field(None, description="null: every pair is trained on.")

    def one_training(self) -> TrainSettings:
        """The settings as the trainer takes them."""
        return TrainSettings.model_validate(self.model_dump(exclude=set(_OWN)))


class ExpertSection(BaseModel):
    """One expert: a slice of the training pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[str, ...] = Field(
        (), description="Kinds of pair: question, claim, title, keywords, labelled, a domain's name, ..."
    )
    pairs: tuple[str, ...] = Field((), description="Files of further pairs (JSONL), for this expert alone.")
    hard_negatives: bool = Field(True, description="Use the hard negatives of these pairs.")
    prompt: str | None = Field(
        None, description="Put before this expert's queries in training; null: the pair's or the base's own."
    )
    steps: int | None = Field(None, ge=1, description="Overrides train.steps.")
    learning_rate: float | None = Field(None, gt=0, description="Overrides train.learning_rate.")
    train: dict[str, Any] = Field(
        default_factory=dict, description="Any other key of train, for this expert alone."
    )

    @model_validator(mode="after")
    def _trained_on_something(self) -> Self:
        if not self.kinds and not self.pairs:
            message = "an expert needs kinds of pairs, or files of pairs"
            raise ValueError(message)
        return self

    def training(self, shared: TrainSection) -> TrainSection:
        """The shared settings with this expert's own.

        Raises:
            pydantic.ValidationError: If ``train`` here has an unknown key or an unusable value.
        """
        own = {"steps": self.steps, "learning_rate": self.learning_rate}
        changes = {name: value for name, value in own.items() if value is not None} | self.train
        return TrainSection.model_validate({**shared.model_dump(), **changes})
