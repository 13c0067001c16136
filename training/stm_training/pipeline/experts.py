"""Stages ``expert-<name>``: one LoRA adapter per slice of the pairs, and one on all of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.merging import ALL_DATA
from stm_training.pipeline.settings import backbone_spec
from stm_training.recipe import ExpertSection, Recipe

RECORD = "expert.json"
_FEWEST_STEPS_BETWEEN_CHECKPOINTS = 20


@dataclass(frozen=True)
class ExpertPlan:
    """One model to train.

    Attributes:
        name: The expert's name, or ``all_data``.
        system: Its name in tables.
        pairs: What it is trained on.
        train: How.
    """

    name: str
    system: str
    pairs: Sequence[Pair]
    train: TrainSettings

    def settings(self) -> dict[str, Any]:
        """What decides the result beside the pairs of the run: which of them, and how."""
        return {
            "kinds": self.kinds(),
            "negatives": self.negatives(),
            "train": self.train.model_dump(mode="json"),
        }

    def kinds(self) -> dict[str, int]:
        """Pairs by kind."""
        return dict(Counter(pair.kind for pair in self.pairs))

    def negatives(self) -> int:
        """Pairs with a hard negative."""
        return sum(1 for pair in self.pairs if pair.negatives)

    def card(self) -> dict[str, Any]:
        """The expert's entry on the model card."""
        return {
            "name": self.name,
            "kinds": self.kinds(),
            "pairs": len(self.pairs),
            "hard_negatives": self.negatives(),
            "written_by": sorted({pair.source for pair in self.pairs}),
            "steps": self.train.max_steps,
            "batch_size": self.train.batch_size,
        }


def plan_experts(recipe: Recipe, pairs: Sequence[Pair]) -> list[ExpertPlan]:
    """Divide the pairs among the experts.

    ``all_data`` gets the same pairs as all experts together, and as many steps.

    Raises:
        ConfigError: If an expert is left without pairs.
    """
    plans = [
        ExpertPlan(name, f"expert:{name}", _slice(name, section, pairs), _train_settings(recipe, section))
        for name, section in recipe.experts.items()
    ]
    if recipe.all_data:
        every = list(dict.fromkeys(pair for plan in plans for pair in plan.pairs))
        steps = sum(plan.train.max_steps or 0 for plan in plans)
        train = _train_settings(recipe, None).model_copy(update={"max_steps": steps})
        plans.append(ExpertPlan(ALL_DATA, ALL_DATA, every, train))
    return plans


def _slice(name: str, section: ExpertSection, pairs: Sequence[Pair]) -> list[Pair]:
    kinds = set(section.kinds)
    chosen = [
        pair if section.hard_negatives else replace(pair, negatives=())
        for pair in pairs
        if pair.kind in kinds
    ]
    if not chosen:
        found = ", ".join(sorted({pair.kind for pair in pairs})) or "none"
        message = (
            f"Expert {name!r} asks for pairs of the kinds {', '.join(section.kinds)}, but the run has "
            f"{found}. Change experts.{name}.kinds in the recipe, or synthesize such queries."
        )
        raise ConfigError(message)
    return chosen


def _train_settings(recipe: Recipe, section: ExpertSection | None) -> TrainSettings:
    train = recipe.train
    steps = train.steps if section is None or section.steps is None else section.steps
    rate = train.learning_rate if section is None or section.learning_rate is None else section.learning_rate
    return TrainSettings(
        max_steps=steps,
        batch_size=train.batch_size,
        learning_rate=rate,
        warmup_steps=min(train.warmup_steps, steps // 10),
        temperature=train.temperature,
        rank=train.lora_rank,
        alpha=train.lora_alpha,
        dropout=train.lora_dropout,
        hard_negatives=train.hard_negatives,
        save_steps=max(_FEWEST_STEPS_BETWEEN_CHECKPOINTS, steps // 10),
    )


def train_one(recipe: Recipe, plan: ExpertPlan, scratch: Path, out: Path, console: RunConsole) -> None:
    """Train one expert into ``out/adapter`` and record its curve in ``out/expert.json``.

    Checkpoints lie in ``scratch``, which outlives a kill; a restart goes on from the last one.
    """
    with console.bar(f"training {plan.name}", total=plan.train.max_steps) as advance:

        def progress(step: int, total: int, loss: float) -> None:
            advance(step, total=total, note=f"loss {loss:.3f}")

        spec = backbone_spec(recipe)
        if recipe.train.max_length is not None:
            spec = replace(spec, max_length=recipe.train.max_length)
        result = train_expert(
            spec, plan.pairs, settings=plan.train, out_dir=scratch, seed=recipe.seed, progress=progress
        )
    shutil.copytree(result.adapter_dir, out / "adapter")
    shutil.rmtree(scratch)
    record = plan.card() | {"losses": list(result.losses), "seconds": round(result.seconds, 2)}
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
