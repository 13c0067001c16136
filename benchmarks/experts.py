"""What each expert gains on its own collection, and what it costs elsewhere: the table of RESULTS.md.

Run: ``python benchmarks/experts.py`` (panel cuts; ``--full`` for the full test collections). Each cell trains
one LoRA expert on one source of pairs and scores it on every test set and guard; its result is stored in
``benchmarks/results/experts/``, its adapter in ``runs/panel/``, where ``benchmarks/merging.py`` finds it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import RESULTS, ROOT, CellStore, gain, points, slug
from panel import DOMAINS, GUARDS, Panel

from stm_training.data.records import Pair
from stm_training.demo.base_model import find_base
from stm_training.evaluate.metrics import mean
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.scoring import score_backbone

MAX_LENGTH = 128
ADAPTERS = ROOT / "runs" / "panel"
SCHEDULE = {"warmup_steps": 10, "precision": "auto"}
EXPERTS = {
    "literature": TrainSettings(steps=100, batch_size=32, learning_rate=2e-4, **SCHEDULE),
    "disease_ontology": TrainSettings(steps=100, batch_size=64, learning_rate=4e-4, **SCHEDULE),
    "medquad": TrainSettings(steps=80, batch_size=32, learning_rate=2e-4, **SCHEDULE),
}
CODE = ("stm_training.finetune", "stm_training.synthesize")
STORE = CellStore(RESULTS / "experts", CODE, {"max_length": MAX_LENGTH})


def spec() -> BackboneSpec:
    """The base: all-MiniLM-L6-v2, texts cut at ``MAX_LENGTH`` tokens."""
    return BackboneSpec(source=str(find_base()), max_length=MAX_LENGTH)


def pairs_of(panel: Panel, name: str) -> list[Pair]:
    """What an expert is trained on; hard negatives are left out (``benchmarks/synthesis.py`` says why).

    ``literature``: the synthetic pairs of SciFact and Evidence Inference, and SciFact's labelled ones twice,
    since they are few.
    """
    if name == "literature":
        pairs = [*panel.synthetic_pairs, *2 * panel.labelled_pairs("scifact")]
    else:
        pairs = panel.labelled_pairs(name)
    return [pair.with_negatives(()) for pair in pairs]


def adapter(
    name: str, seed: int, settings: TrainSettings, pairs: Callable[[], Sequence[Pair]]
) -> tuple[Path, dict[str, Any]]:
    """Train an adapter, or find the one that an earlier run left; with its training record."""
    folder = ADAPTERS / slug(f"{name}-seed{seed}")
    key = STORE.key([name, seed, settings.model_dump()])
    record = folder / "record.json"
    if record.is_file() and (stored := json.loads(record.read_text("utf-8")))["key"] == key:
        return folder / "adapter", stored
    shutil.rmtree(folder, ignore_errors=True)
    rows = pairs()
    trained = train_expert(spec(), rows, settings=settings, out_dir=folder, seed=seed)
    losses = [round(loss, 4) for loss in trained.losses]
    found = {"key": key, "pairs": len(rows), "losses": losses, "train_seconds": round(trained.seconds, 1)}
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    os.replace(partial, record)
    return folder / "adapter", found


def scores(backbone: Backbone, problems: dict[str, Problem]) -> dict[str, dict[str, float]]:
    """nDCG@10 per query of every problem."""
    return {name: score_backbone(backbone, problem)["ndcg@10"] for name, problem in problems.items()}


def base_cell(panel: Panel, *, full: bool) -> dict[str, Any]:
    """The untouched base on every test set."""

    def work() -> dict[str, Any]:
        return summary(scores(load_backbone(spec()), panel.tests))

    return STORE.run("base" + "-full" * full, {"full": full}, work)


def expert_cell(panel: Panel, name: str, seed: int, *, full: bool) -> dict[str, Any]:
    """One expert on every test set."""
    settings = EXPERTS[name]

    def work() -> dict[str, Any]:
        folder, record = adapter(name, seed, settings, lambda: pairs_of(panel, name))
        backbone = load_backbone(spec())
        merged = MergedModel(backbone, {name: full_deltas(folder, backbone)})
        merged.apply(MergeRecipe(method="task_arithmetic", weights={name: 1.0}))
        return summary(scores(backbone, panel.tests)) | {"training": record, "seed": seed}

    cell = f"{name}{'-full' * full}-seed{seed}"
    return STORE.run(cell, {"full": full, "seed": seed, "settings": settings.model_dump()}, work)


def summary(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means by set, of the domain and of the guards, with the scores of each query."""
    means = {name: mean(values) for name, values in found.items()}
    means["domain"] = float(np.mean([means[name] for name in DOMAINS]))
    means["guards"] = float(np.mean([means[name] for name in GUARDS]))
    return {"means": means, "scores": found}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown; ``rows`` holds the seeds of each system, the base first."""
    sets = [*DOMAINS, *GUARDS]
    base = rows["base"][0]
    lines = ["| model | " + " | ".join(sets) + " | domain, vs base | guards, vs base | seeds |"]
    lines.append("|---" * (len(sets) + 4) + "|")
    for name, cells in rows.items():
        means = [float(np.mean([cell["means"][one] for cell in cells])) for one in sets]
        row = [name, *(f"{value:.4f}" for value in means)]
        row += (
            ["-", "-"]
            if name == "base"
            else [points(gain(cells, base, list(part))) for part in (DOMAINS, GUARDS)]
        )
        lines.append("| " + " | ".join([*row, str(len(cells))]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="full test collections, not the panel's cuts")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every expert (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write the means to this file")
    arguments = parser.parse_args()
    panel = Panel(full=arguments.full)
    rows = {"base": [base_cell(panel, full=arguments.full)]}
    for seed in range(arguments.seeds):
        for name in EXPERTS:
            rows.setdefault(f"expert: {name}", []).append(expert_cell(panel, name, seed, full=arguments.full))
    print(table(rows))
    if arguments.json:
        document = {name: [cell["means"] for cell in cells] for name, cells in rows.items()}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
