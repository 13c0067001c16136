"""Which of an expert's pairs are trained on: all, those that gradients choose, or as many by lot."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_training.data.records import Pair
from stm_training.finetune.settings import TrainSettings
from stm_training.pipeline.console import RunConsole

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone, BackboneSpec
    from stm_training.pipeline.experts import ExpertPlan


@dataclass(frozen=True)
class Selected:
    """The pairs that are trained on, and how they were chosen (JSON); ``None`` where all are."""

    pairs: Sequence[Pair]
    report: dict[str, Any] | None = None


def selected_pairs(
    plan: ExpertPlan, spec: BackboneSpec, scratch: Path, *, seed: int, console: RunConsole
) -> Selected:
    """Choose a plan's pairs; the probe that choosing by gradient takes is thrown away."""
    from stm_training.finetune.selection import random_selection, select_by_gradient

    section = plan.train.select
    if plan.choice == "all" or section is None:
        return Selected(plan.pairs)
    if plan.choice == "random":
        count = len(plan.pairs)
        size = count - int(count * section.drop_low) - int(count * section.drop_high)
        selection = random_selection(plan.pairs, size=size, seed=seed)
    else:
        settings = plan.train.one_training().model_copy(
            update={"steps": section.probe_steps, "eval_steps": None, "anchor_weight": 0.0}
        )
        probed = _probe(spec, plan.pairs, settings, scratch, seed)
        with console.bar(f"weighing {plan.name}", total=len(plan.pairs)) as advance:
            selection = select_by_gradient(
                probed,
                plan.pairs,
                settings=settings,
                drop_low=section.drop_low,
                drop_high=section.drop_high,
                seed=seed,
                progress=lambda done, total: advance(done, total=total),
            )
    return Selected(selection.of(plan.pairs), selection.report(plan.pairs))


def _probe(
    spec: BackboneSpec, pairs: Sequence[Pair], settings: TrainSettings, scratch: Path, seed: int
) -> Backbone:
    """A backbone after a short training, its trained weights still trainable."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from stm_training.finetune.backbone import load_backbone
    from stm_training.finetune.full_weights import train_all_weights
    from stm_training.finetune.lora import attach_lora
    from stm_training.finetune.trainer import train_expert

    result = train_expert(spec, pairs, settings=settings, out_dir=scratch, seed=seed)
    if result.model_dir is not None:
        backbone = load_backbone(replace(spec, source=str(result.model_dir), revision=None))
        train_all_weights(backbone)
    else:
        backbone = load_backbone(spec)
        attach_lora(backbone, rank=settings.lora_rank, alpha=settings.lora_alpha)
        set_peft_model_state_dict(backbone.model, load_file(result.adapter_dir / "adapter_model.safetensors"))
    shutil.rmtree(scratch, ignore_errors=True)
    return backbone
