"""Stages ``retriever`` and ``index``: what a run leaves for an application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stm_retriever import Embedder, Retriever
from stm_training.commands.index import add_in_batches, as_document
from stm_training.data.records import Passage
from stm_training.export.folder_writer import write_retriever_folder
from stm_training.pipeline.collections import Problem, judged_and_sample
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.settings import base_name, load_base
from stm_training.pipeline.systems import MERGED, Choice, apply_choice
from stm_training.recipe import Recipe

_GATE_QUERIES, _GATE_PASSAGES = 300, 1000


@dataclass(frozen=True)
class Provenance:
    """What the card says about where a model comes from."""

    experts: Sequence[Mapping[str, Any]]
    data: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]


def write_retriever(
    recipe: Recipe,
    choice: Choice,
    experts: Mapping[str, Path],
    provenance: Provenance,
    dev: Sequence[Problem],
    dimensions: Sequence[int],
    out: Path,
    console: RunConsole,
) -> None:
    """Export what ships.

    Args:
        recipe: The recipe.
        choice: What ships.
        experts: Folder of the expert's stage by system name.
        provenance: For manifest and card.
        dev: Development problems, on which smaller ONNX files must do as well as the fp32 one.
        dimensions: Lengths to which vectors may be cut.
        out: Folder to write into.
        console: Shows the progress.

    Raises:
        ExportParityError: If an ONNX file gives other vectors, or one of the smaller files loses too much.
    """
    backbone = load_base(recipe)
    apply_choice(backbone, choice, experts)
    base = {"name": base_name(recipe), "revision": recipe.base.revision}
    if recipe.base.source.count("/") == 1 and not Path(recipe.base.source).exists():
        base["hub_name"] = recipe.base.source
    used = {name.removeprefix("expert:") for name in choice.members}
    with console.bar("exporting to ONNX") as advance:
        steps = 0

        def tell(line: str) -> None:
            nonlocal steps
            steps += 1
            advance(steps, note=line)

        write_retriever_folder(
            backbone,
            out,
            name=recipe.name,
            base=base,
            experts=[expert for expert in provenance.experts if expert["name"] in used],
            merge=choice.merge if choice.system == MERGED else None,
            data=provenance.data,
            licences=[recipe.licence] if recipe.licence else [],
            metrics=provenance.metrics,
            variants=recipe.export.variants,
            dimensions=dimensions,
            dev=[_cut(problem, recipe.seed) for problem in dev] if len(recipe.export.variants) > 1 else [],
            progress=tell,
        )


def _cut(problem: Problem, seed: int) -> Problem:
    """Small enough to be encoded once per ONNX file."""
    queries = dict(list(problem.queries.items())[:_GATE_QUERIES])
    qrels = {name: problem.qrels[name] for name in queries}
    keep = set(queries) if problem.exclude_self else None
    passages = judged_and_sample(problem.passages, qrels, _GATE_PASSAGES, seed=seed, keep=keep)
    return replace(problem, queries=queries, qrels=qrels, passages=passages)


def build_index(
    retriever_folder: Path, passages: Sequence[Passage], out: Path, *, kind: str, quiet: bool
) -> None:
    """Encode all passages with the exported model and store them."""
    embedder = Embedder.load(retriever_folder)
    with Retriever.create(out, embedder=embedder, kind=kind, exist_ok=True) as index:
        add_in_batches(
            index, (as_document(passage) for passage in passages), total=len(passages), quiet=quiet
        )
