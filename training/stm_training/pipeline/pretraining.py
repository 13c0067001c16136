"""Stage ``pretrain``: contrastive pre-training on pairs from raw text, which all experts start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from stm_training.data.pair_file import PairFile
from stm_training.finetune.backbone import load_backbone
from stm_training.finetune.full_weights import save_model
from stm_training.finetune.live import LiveFigures
from stm_training.finetune.lora import bake_adapter
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.members import ADAPTER, MODEL
from stm_training.pipeline.settings import backbone_spec
from stm_training.pretrain.documents import stream_documents
from stm_training.pretrain.settings import PretrainSection
from stm_training.pretrain.write import write_pretraining_pairs
from stm_training.recipe import Recipe

PAIRS, RECORD = "pairs.jsonl", "pretrain.json"
_SAVE_EVERY = 50


def pretrain(
    recipe: Recipe,
    section: PretrainSection,
    held_out: Iterable[str],
    scratch: Path,
    out: Path,
    console: RunConsole,
) -> None:
    """Write pairs from raw text, train an adapter on them, and save the adapter and the model with it.

    Args:
        recipe: The recipe.
        section: Its ``pretrain``.
        held_out: Development and test queries.
        scratch: Folder that outlives a kill: pairs and checkpoints.
        out: Folder to write into.
        console: Shows the progress.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with console.bar("pairs from raw text") as advance:
        report = write_pretraining_pairs(
            stream_documents(section.corpus or recipe.corpus, recipe.on_error),
            section,
            scratch / PAIRS,
            seed=recipe.seed,
            held_out=held_out,
            progress=lambda done, pairs: advance(done, note=f"{pairs} pairs"),
        )
    spec = backbone_spec(recipe)
    if section.max_length is not None:
        spec = replace(spec, max_length=section.max_length)
    with console.bar("pre-training", total=section.steps) as advance, PairFile(scratch / PAIRS) as pairs:
        result = train_expert(
            spec,
            pairs,
            settings=_settings(recipe, section),
            out_dir=scratch,
            seed=recipe.seed,
            callbacks=[LiveFigures(advance)],
        )
    shutil.copytree(result.adapter_dir, out / ADAPTER)
    backbone = load_backbone(backbone_spec(recipe))
    bake_adapter(out / ADAPTER, backbone)
    save_model(backbone, out / MODEL)
    record = {
        "pairs": report.pairs,
        "kinds": report.kinds,
        "documents": report.documents,
        "dropped": report.dropped,
        "losses": list(result.losses),
        "seconds": round(result.seconds, 2),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(scratch)


def _settings(recipe: Recipe, section: PretrainSection) -> TrainSettings:
    """The recipe's training, with this stage's own schedule and nothing that needs labelled data."""
    return recipe.train.one_training().model_copy(
        update={
            "loss": "info_nce",
            "steps": section.steps,
            "batch_size": section.batch_size,
            "learning_rate": section.learning_rate,
            "temperature": section.temperature,
            "adapter": "lora",
            "eval_steps": None,
            "patience": None,
            "anchor_weight": 0.0,
            "save_steps": _SAVE_EVERY,
        }
    )
