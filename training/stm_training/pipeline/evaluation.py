"""Stage ``evaluate``: the test queries, once, after the choice is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from stm_training.evaluate.metrics import mean, score_run
from stm_training.evaluate.trec_files import write_qrels, write_run
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.scoring import (
    QueryMetrics,
    Ranking,
    rank_backbone,
    rank_bm25,
    read_vectors,
    score_backbone,
    together,
)
from stm_training.pipeline.settings import load_base
from stm_training.pipeline.systems import BASE, MERGED, PROMPTED, Choice, Systems
from stm_training.recipe import Recipe

SCORES, RUNS = "scores.json", "runs"
BM25_NAME = "bm25"
NDCG = "ndcg@10"


def evaluate_on_test(
    recipe: Recipe,
    choice: Choice,
    experts: Mapping[str, Path],
    tests: Sequence[Problem],
    guards: Sequence[Problem],
    vectors: Path,
    out: Path,
    console: RunConsole,
) -> None:
    """Score every system on the test queries, and what ships on the test halves of the guards.

    Args:
        recipe: The recipe.
        choice: What was chosen before any test query was looked at.
        experts: Folder of the expert's stage by system name.
        tests: The test queries over the whole corpus, then those of the recipe's domains over theirs.
        guards: The test halves of the guards.
        vectors: Passage vectors that the search for a merge kept; those of other passages are not used.
        out: Folder to write ``scores.json`` into, and ``runs/``: what was ranked, in TREC's format.
        console: Shows the progress.
    """
    (out / RUNS).mkdir()
    for test in tests:
        write_qrels(out / RUNS / f"{test.name}.qrels", test.qrels)
    systems = list(dict.fromkeys([BASE, *experts, MERGED, choice.shipped]))
    scores: dict[str, list[QueryMetrics]] = {}
    guard_scores: dict[str, dict[str, float]] = {guard.name: {} for guard in guards}
    with console.bar("scoring on test", total=len(systems) + 1) as advance:
        backbone = load_base(recipe)
        made = Systems(backbone, choice, experts)
        for name in systems:
            made.become(name)
            # The query prompt leaves the passages' vectors alone.
            kept = choice.system if name == PROMPTED else name
            ranked = [rank_backbone(backbone, test, read_vectors(vectors, kept, test)) for test in tests]
            scores[name] = _scored(name, ranked, tests, out / RUNS)
            if name in (BASE, choice.shipped):
                for guard in guards:
                    guard_scores[guard.name][name] = mean(score_backbone(backbone, guard)[NDCG])
            advance(len(scores), note=name)
        scores[BM25_NAME] = _scored(BM25_NAME, [rank_bm25(test) for test in tests], tests, out / RUNS)
        advance(len(scores), note=BM25_NAME)
    document = {
        "scores": {name: together(found) for name, found in scores.items()},
        "sets": {
            test.name: {name: mean(found[number][NDCG]) for name, found in scores.items()}
            for number, test in enumerate(tests)
        },
        "guards": guard_scores,
        "guard_queries": {guard.name: len(guard.queries) for guard in guards},
    }
    (out / SCORES).write_text(json.dumps(document) + "\n", encoding="utf-8")


def _scored(
    system: str, ranked: Sequence[Ranking], tests: Sequence[Problem], folder: Path
) -> list[QueryMetrics]:
    """Score what a system ranked, and keep it for other programs, and for those who want to look."""
    for ranking, test in zip(ranked, tests, strict=True):
        name = system.replace(":", "-")
        write_run(folder / f"{test.name}.{name}.run", ranking, tag=name)
    return [score_run(ranking, test.qrels) for ranking, test in zip(ranked, tests, strict=True)]
