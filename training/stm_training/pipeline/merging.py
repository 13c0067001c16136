"""Stage ``merge``: score the base, the experts and their merges on dev and guards, and choose what ships."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from stm_retriever.errors import MergeError
from stm_training.evaluate.selection import Decision, SelectionRow
from stm_training.merge.fusion import FusionCurve
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.computed import fused, with_cocktail
from stm_training.merge.search.evaluator import ModelEvaluator, evaluator_for
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.objective import domain, general, guard_losses
from stm_training.merge.search.pareto import choose_by
from stm_training.merge.search.processes import Work, search_in_processes
from stm_training.merge.search.records import SearchResult, Trial, TrialScores
from stm_training.merge.search.study import search
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.deciding import decide
from stm_training.pipeline.members import member_deltas
from stm_training.pipeline.scoring import vectors_path
from stm_training.pipeline.settings import load_base
from stm_training.pipeline.systems import ALL_DATA, BASE, EXPERT, MERGED, Choice, alone
from stm_training.recipe import Recipe
from stm_training.report.summary import CandidateSummary

CHOICE, FUSION = "choice.json", "fusion.json"
VECTORS = "vectors"  # of the systems' passages, so that the test queries need no second pass over the corpus


def search_and_choose(
    recipe: Recipe,
    experts: Mapping[str, Path],
    dev: Sequence[Problem],
    guards: Sequence[Problem],
    inputs: str,
    scratch: Path,
    out: Path,
    console: RunConsole,
) -> None:
    """Score every candidate, choose, and write ``choice.json``.

    Test queries have no way in here.

    Args:
        recipe: The recipe.
        experts: Folder of each expert's stage by system name (``expert:<name>``, ``all_data``).
        dev: The development queries, one problem per collection; each weighs the same.
        guards: The development halves of the guards.
        inputs: Hash of all that decides a score.
        scratch: Folder that outlives a kill: the search's storage.
        out: Folder to write into.
        console: Shows the progress.
    """
    members = tuple(name for name in experts if name.startswith(EXPERT))
    job = SearchJob(recipe.merge, members, scratch, inputs, recipe.seed, recipe.evaluate.max_guard_loss)
    make = partial(_work, recipe, dict(experts), tuple(dev), tuple(guards))
    kept = _KeptVectors(recipe, dev, out / VECTORS)
    scores: dict[str, TrialScores] = {}
    with make() as work, console.bar("scoring on dev", total=1 + len(experts) + recipe.merge.trials) as tell:
        for name, merge in {BASE: None, **{name: alone(name) for name in experts}}.items():
            scores[name] = work.evaluate(merge)
            kept.keep(name, merge, work.evaluate)
            tell(len(scores), note=name)

        def progress(trial: Trial, total: int) -> None:
            score = "ended early" if trial.domain is None else f"{trial.domain:.4f}"
            tell(len(scores) + trial.number + 1, total=len(scores) + total, note=f"{score}")

        if recipe.merge.processes > 1:
            result = search_in_processes(job, make, progress)
        else:
            result = search(job, work.evaluate, surrogate=work.surrogate, progress=progress)
        result = with_cocktail(result, recipe.merge, members, work.evaluate, dev, job.tolerance)
        best = _best(result, recipe.evaluate.max_guard_loss)
        scores[MERGED] = best.scores
        kept.keep(MERGED, best.recipe, work.evaluate)
        if recipe.merge.fusion_curve:
            curve = fused(work.evaluate, best.recipe, dev, guards)
            (out / FUSION).write_text(curve.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _write(recipe, scores, best.recipe, result, out)


@contextmanager
def _work(
    recipe: Recipe, experts: Mapping[str, Path], dev: Sequence[Problem], guards: Sequence[Problem]
) -> Iterator[Work]:
    """What each process of a search needs; a function of the module, since other processes call it."""
    backbone = load_base(recipe)
    deltas = {name: member_deltas(folder, backbone) for name, folder in experts.items()}
    share = recipe.merge.prune_share if recipe.merge.pruning else None
    with evaluator_for(backbone, deltas, dev, guards, prune_share=share, seed=recipe.seed) as evaluator:
        yield Work(evaluator, evaluator.surrogate() if recipe.merge.surrogate else None)


@dataclass(frozen=True)
class _KeptVectors:
    """Keeps systems' passage vectors, where the test queries are answered from the same passages."""

    recipe: Recipe
    dev: Sequence[Problem]
    folder: Path

    def keep(self, name: str, merge: MergeRecipe | None, evaluate: ModelEvaluator) -> None:
        if self.recipe.evaluate.dev_documents is not None:
            return
        self.folder.mkdir(exist_ok=True)
        vectors = evaluate.vectors(merge)
        for problem in self.dev:
            np.save(vectors_path(self.folder, name, problem), vectors[problem.name].documents)


def _best(result: SearchResult, max_guard_loss: float) -> Trial:
    """Highest dev mean among the merges that no guard forbids; among all where every one is forbidden."""
    allowed = choose_by(result.trials, max_guard_loss)
    best = allowed or result.best_trial
    if best is None:
        message = (
            f"All {len(result.trials)} merges were ended early, so none can be compared with the experts. "
            "Set merge.pruning to false, or try other weights."
        )
        raise MergeError(message)
    return best


def _write(
    recipe: Recipe, scores: Mapping[str, TrialScores], best: MergeRecipe, result: SearchResult, out: Path
) -> None:
    members = dict.fromkeys(scores, 1) | {BASE: 0, MERGED: len(best.weights)}
    decision = decide(
        scores,
        members,
        base=BASE,
        ship_if=recipe.ship_if,
        max_guard_loss=recipe.evaluate.max_guard_loss,
        seed=recipe.seed,
        samples=recipe.evaluate.bootstrap_samples,
    )
    document = {
        "shipped": decision.shipped,
        "merge": best.model_dump(mode="json") | {"trials": len(result.trials)},
        "decision": asdict(decision),
        "candidates": [one.model_dump(mode="json") for one in _candidates(scores, result, decision.shipped)],
        "search": result.model_dump(mode="json"),
    }
    (out / CHOICE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_choice(folder: Path) -> Choice:
    """Read what :func:`search_and_choose` wrote."""
    document = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
    merge, trials = document["merge"], document["merge"].pop("trials")
    raw = document["decision"]
    rows = tuple(
        SelectionRow(**{**row, "ci95": None if row["ci95"] is None else tuple(row["ci95"])})
        for row in raw["table"]
    )
    shipped = document["shipped"]
    members: list[str] = []
    if shipped == MERGED:
        members = list(merge["weights"])
    elif shipped != BASE:
        members = [shipped]
    return Choice(shipped, members, merge, trials, Decision(**{**raw, "table": rows}))


def _candidates(
    scores: Mapping[str, TrialScores], result: SearchResult, shipped: str
) -> list[CandidateSummary]:
    """Points of the domain-against-general plot; none without guards."""
    if not scores[BASE].guards:
        return []
    kinds: dict[str, Literal["base", "all_data"]] = {BASE: "base", ALL_DATA: "all_data"}
    points = [
        CandidateSummary(
            name=name.removeprefix(EXPERT),
            kind=kinds.get(name, "expert"),
            domain=domain(found),
            general=general(found) or 0.0,
            worst_guard_loss=max(guard_losses(found, scores[BASE]).values()),
            chosen=name == shipped,
        )
        for name, found in scores.items()
        if name != MERGED
    ]
    merges = [
        CandidateSummary(
            name=f"merge {trial.number + 1}",
            kind="merge",
            domain=trial.domain or 0.0,
            general=trial.general or 0.0,
            worst_guard_loss=trial.worst_guard_loss,
            on_front=index in result.pareto,
            chosen=shipped == MERGED and trial.scores is scores[MERGED],
        )
        for index, trial in enumerate(result.trials)
        if not trial.pruned
    ]
    return points + merges


def candidates(folder: Path) -> tuple[CandidateSummary, ...]:
    """What was scored in full on development queries and guards."""
    document = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
    return tuple(CandidateSummary.model_validate(one) for one in document["candidates"])


def fusion_curve(folder: Path) -> FusionCurve | None:
    """The lambda curve, where the recipe asked for it."""
    path = folder / FUSION
    return FusionCurve.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
