"""Stage ``evaluate``: the test queries, once, after the choice is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stm_training.evaluate.metrics import mean
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.merging import BASE, MERGED, PROMPTED, Choice, apply_choice
from stm_training.pipeline.scoring import QueryMetrics, score_backbone, score_bm25, vectors_path
from stm_training.pipeline.settings import load_base
from stm_training.recipe import Recipe

SCORES = "scores.json"
BM25_NAME = "bm25"
NDCG = "ndcg@10"


def evaluate_on_test(
    recipe: Recipe,
    choice: Choice,
    adapters: Mapping[str, Path],
    test: Problem,
    guards: Sequence[Problem],
    vectors: Path,
    out: Path,
    console: RunConsole,
) -> None:
    """Score every system on the test queries, and what ships on the test halves of the guards.

    Args:
        recipe: The recipe.
        choice: What was chosen before any test query was looked at.
        adapters: Adapter folder by system name.
        test: The test queries over the whole corpus.
        guards: The test halves of the guards.
        vectors: Passage vectors that the search for a merge kept; those of other passages are not used.
        out: Folder to write ``scores.json`` into.
        console: Shows the progress.
    """
    systems = list(dict.fromkeys([BASE, *adapters, MERGED, choice.shipped]))
    scores: dict[str, QueryMetrics] = {}
    guard_scores: dict[str, dict[str, float]] = {guard.name: {} for guard in guards}
    with console.bar("scoring on test", total=len(systems) + 1) as advance:
        for name in systems:
            backbone = load_base(recipe)
            apply_choice(backbone, choice, adapters, system=name)
            # The query prompt leaves the passages' vectors alone.
            known = vectors_path(vectors, choice.system if name == PROMPTED else name, test)
            documents = np.load(known, allow_pickle=False) if known.exists() else None
            scores[name] = score_backbone(backbone, test, documents)
            if name in (BASE, choice.shipped):
                for guard in guards:
                    guard_scores[guard.name][name] = mean(score_backbone(backbone, guard)[NDCG])
            advance(len(scores), note=name)
        scores[BM25_NAME] = score_bm25(test)
        advance(len(scores), note=BM25_NAME)
    document = {
        "scores": scores,
        "guards": guard_scores,
        "guard_queries": {guard.name: len(guard.queries) for guard in guards},
    }
    (out / SCORES).write_text(json.dumps(document) + "\n", encoding="utf-8")
