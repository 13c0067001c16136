"""Stage ``prompt``: the query prompt of what ships, chosen on development queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stm_training.llm.base import LLM
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.scoring import read_vectors
from stm_training.pipeline.settings import load_base
from stm_training.pipeline.systems import Choice, apply_choice
from stm_training.prompting.search import search_prompt
from stm_training.recipe import Recipe

DECISION = "prompt.json"


def choose_prompt(
    recipe: Recipe,
    choice: Choice,
    experts: Mapping[str, Path],
    dev: Problem,
    held_out: list[str],
    vectors: Path,
    work: Path,
    out: Path,
    console: RunConsole,
    llm: LLM | None = None,
) -> None:
    """Search the query prompt of what ships and write ``prompt.json``.

    Args:
        recipe: The recipe; its ``prompts`` says what is tried.
        choice: What ships.
        experts: Folder of the expert's stage by system name.
        dev: The development queries.
        held_out: Texts of the test queries, which no prompt may copy.
        vectors: Passage vectors that the search for a merge kept.
        work: Folder that outlives a kill.
        out: Folder to write into.
        console: Shows the progress.
        llm: For GEPA.
    """
    if recipe.prompts is None:
        raise ValueError("the recipe searches no prompt")
    backbone = load_base(recipe)
    apply_choice(backbone, choice, experts)
    with console.bar("trying prompts") as advance:
        decision = search_prompt(
            backbone,
            dev,
            recipe.prompts,
            llm=llm,
            seed=recipe.seed,
            progress=lambda done, total, note: advance(done, total=total, note=note),
            documents=read_vectors(vectors, choice.system, dev),
            held_out=held_out,
            dataset_names=[Path(recipe.corpus).name],
            work=work,
        )
    (out / DECISION).write_text(json.dumps(decision.figures(), indent=1, ensure_ascii=False) + "\n", "utf-8")


def with_prompt(choice: Choice, folder: Path) -> Choice:
    """The choice with the prompt that :func:`choose_prompt` found, where it is another than the base's."""
    figures = json.loads((folder / DECISION).read_text(encoding="utf-8"))
    return replace(choice, prompt=figures["prompt"]) if figures["changed"] else choice
