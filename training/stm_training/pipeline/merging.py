"""Stage ``merge``: score the base, the experts and their merges on dev and guards, and choose what ships."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stm_training.evaluate.compare import NDCG
from stm_training.evaluate.selection import Decision, SelectionRow, choose
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.lora import full_deltas
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from stm_training.pipeline.candidates import describe, merge_candidates
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.scoring import Vectors, encode_passages, score_backbone, vectors_path
from stm_training.pipeline.settings import load_base
from stm_training.prompting.applying import set_query_prompt
from stm_training.recipe import Recipe

CHOICE = "choice.json"
VECTORS = "vectors"  # of the systems' passages, so that the test queries need no second pass over the corpus
BASE, ALL_DATA, MERGED = "base", "all_data", "merged"
PROMPTED = "prompted"  # what ships, with another query prompt than the base's


@dataclass(frozen=True)
class Choice:
    """What ships, and how to make every system of the run again.

    Attributes:
        system: The weights that ship: ``base``, an expert, ``all_data`` or ``merged``.
        members: Adapters in what ships.
        merge: The best merge on dev, as ``MergeRecipe`` stores it.
        trials: How many merges were tried.
        decision: The table that the choice rests on.
        prompt: The query prompt that ships, where the prompt search found a better one than the base's.
    """

    system: str
    members: Sequence[str]
    merge: dict[str, Any]
    trials: int
    decision: Decision
    prompt: str | None = None

    @property
    def shipped(self) -> str:
        """Name of what ships, in tables."""
        return self.system if self.prompt is None else PROMPTED


@dataclass
class _Scores:
    """nDCG@10 per query, on dev and on each guard, by candidate."""

    dev: dict[str, list[float]] = field(default_factory=dict)
    guards: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        return sum(self.dev[name]) / len(self.dev[name])

    def worst_guard(self, name: str) -> float:
        """Largest loss against the base on a guard, in points; negative where all gain."""
        losses = [100 * (_mean(scores[BASE]) - _mean(scores[name])) for scores in self.guards.values()]
        return max(losses, default=0.0)


def search_and_choose(
    recipe: Recipe,
    adapters: Mapping[str, Path],
    dev: Problem,
    guards: Sequence[Problem],
    out: Path,
    console: RunConsole,
) -> None:
    """Score every candidate, choose, and write ``choice.json``.

    Test queries have no way in here.

    Args:
        recipe: The recipe.
        adapters: Adapter folder by system name (``expert:<name>``, ``all_data``).
        dev: The development queries.
        guards: The development halves of the guards.
        out: Folder to write into.
        console: Shows the progress.
    """
    backbone = load_base(recipe)
    deltas = {name: full_deltas(folder, backbone) for name, folder in adapters.items()}
    experts = [name for name in adapters if name != ALL_DATA]
    candidates = merge_candidates(recipe.merge, experts, seed=recipe.seed)
    scores = _Scores(guards={guard.name: {} for guard in guards})
    merged = MergedModel(backbone, deltas)
    total = 1 + len(adapters) + len(candidates)
    with merged, console.bar("scoring on dev", total=total) as advance:

        def score(name: str, merge: MergeRecipe | None) -> Vectors:
            if merge is not None:
                merged.apply(merge)
            documents = encode_passages(backbone, dev)
            scores.dev[name] = _ndcg(backbone, dev, documents)
            for guard in guards:
                scores.guards[guard.name][name] = _ndcg(backbone, guard)
            advance(len(scores.dev), note=f"best {max(map(_mean, scores.dev.values())):.4f}")
            return documents

        vectors = {BASE: score(BASE, None)}
        for name in adapters:
            vectors[name] = score(name, _alone(name))
        for number, candidate in enumerate(candidates, start=1):
            documents = score(describe(candidate), candidate)
            if _best_merge(candidates[:number], scores, recipe.evaluate.max_guard_loss) is candidate:
                vectors[MERGED] = documents
    _write(recipe, scores, candidates, experts, adapters, out)
    (out / VECTORS).mkdir()
    for name, documents in vectors.items():
        np.save(vectors_path(out / VECTORS, name, dev), documents)


def _alone(name: str) -> MergeRecipe:
    return MergeRecipe(method="task_arithmetic", weights={name: 1.0})


def _ndcg(backbone: Backbone, problem: Problem, documents: Vectors | None = None) -> list[float]:
    return list(score_backbone(backbone, problem, documents)[NDCG].values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write(
    recipe: Recipe,
    scores: _Scores,
    candidates: Sequence[MergeRecipe],
    experts: Sequence[str],
    adapters: Mapping[str, Path],
    out: Path,
) -> None:
    best = _best_merge(candidates, scores, recipe.evaluate.max_guard_loss)
    shippable = {name: name for name in (BASE, *adapters)} | {MERGED: describe(best)}
    members = {BASE: 0, MERGED: len(best.weights)} | dict.fromkeys(experts, 1) | {ALL_DATA: 1}
    decision = choose(
        {name: scores.dev[key] for name, key in shippable.items()},
        base=BASE,
        ship_if=recipe.ship_if,
        guards={
            guard: {name: table[key] for name, key in shippable.items()}
            for guard, table in scores.guards.items()
        },
        max_guard_loss=recipe.evaluate.max_guard_loss,
        members={name: count for name, count in members.items() if name in shippable},
        seed=recipe.seed,
        samples=recipe.evaluate.bootstrap_samples,
    )
    document = {
        "shipped": decision.shipped,
        "merge": best.model_dump(mode="json") | {"trials": len(candidates)},
        "decision": asdict(decision),
        "trials": [
            candidate.model_dump(mode="json")
            | {"dev_ndcg@10": scores.mean(key), "worst_guard_loss": scores.worst_guard(key)}
            for candidate in candidates
            for key in [describe(candidate)]
        ],
        "dev": scores.dev,
        "guards": scores.guards,
    }
    (out / CHOICE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _best_merge(candidates: Sequence[MergeRecipe], scores: _Scores, max_guard_loss: float) -> MergeRecipe:
    """Highest dev mean among the merges that no guard forbids; among all where every one is forbidden."""
    allowed = [item for item in candidates if scores.worst_guard(describe(item)) <= max_guard_loss]
    return max(allowed or candidates, key=lambda item: (scores.mean(describe(item)), -len(item.weights)))


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


def apply_choice(
    backbone: Backbone, choice: Choice, adapters: Mapping[str, Path], system: str | None = None
) -> None:
    """Turn a freshly loaded base into one of the run's systems; by default into what ships."""
    system = system or choice.shipped
    if system == PROMPTED and choice.prompt is not None:
        set_query_prompt(backbone, choice.prompt)
        system = choice.system
    if system == BASE:
        return
    merge = _alone(system) if system != MERGED else MergeRecipe.model_validate(choice.merge)
    MergedModel(backbone, {name: full_deltas(adapters[name], backbone) for name in merge.weights}).apply(
        merge
    )
