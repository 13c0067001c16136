"""Base, experts, all data at once, and merges by every method: the table of RESULTS.md.

Run: ``python benchmarks/merging.py`` (panel cuts; ``--full`` for the full test collections). The experts are
those of ``benchmarks/experts.py``; "all data at once" gets the same pairs, the same total of steps and as
many tuning trials on development queries (its change's share, from the base to beyond itself). One search per
method, ranked by development queries with the guards' development halves; test queries are scored once per
winner. Cells are stored in ``benchmarks/results/merging/``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cells import RESULTS, CellStore
from experts import (
    EXPERTS,
    SCHEDULE,
    adapter,
    base_cell,
    expert_cell,
    pairs_of,
    scores,
    spec,
    summary,
    table,
)
from panel import DOMAINS, Panel

from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.merge.fusion import FusionSet, lambda_curve
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.evaluator import ModelEvaluator, evaluator_for, ndcg_by_query
from stm_training.merge.search.grid import random_candidates
from stm_training.merge.search.objective import Objective, domain, general, guard_losses
from stm_training.merge.search.records import TrialScores
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.space import Space
from stm_training.merge.search.surrogate import Surrogate
from stm_training.pipeline.scoring import encode_passages
from stm_training.report.pareto import ChartPoint, Kind, pareto_svg

ALL_DATA = "all_data"
METHODS = (
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "model_stock",
)
MAX_GUARD_LOSS = 0.5
DEV_DOCUMENTS = 250
TRIALS = 6
POOL = 60  # random merges that the experts' own vectors rank beforehand
CODE = ("stm_training.merge", "stm_training.finetune")
STORE = CellStore(RESULTS / "merging", CODE, {"trials": TRIALS, "pool": POOL, "guard": MAX_GUARD_LOSS})
SHARES = (0.4, 0.55, 0.7, 0.85, 1.0, 1.15)  # of the all-data model's change: its tuning trials


class Members:
    """Experts' deltas and an evaluator on development queries, made when first needed."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel

    @cached_property
    def deltas(self) -> dict[str, Any]:
        """Full deltas by expert, seed 0, and those of all data at once."""
        base = load_backbone(spec())
        found = {}
        for name, settings in EXPERTS.items():
            folder, _ = adapter(name, 0, settings, lambda name=name: pairs_of(self.panel, name))
            found[name] = full_deltas(folder, base)
        return found | {ALL_DATA: full_deltas(self.all_data[0], base)}

    @cached_property
    def all_data(self) -> tuple[Path, dict[str, Any]]:
        """The adapter that is trained on every pair, and its training's record."""
        return adapter(ALL_DATA, 0, all_data_settings(), self.every_pair)

    def every_pair(self) -> list[Pair]:
        """The pairs of all experts together."""
        return [pair for name in EXPERTS for pair in pairs_of(self.panel, name)]

    @cached_property
    def evaluate(self) -> ModelEvaluator:
        """Scores merges on the development sets."""
        dev, guards = self.panel.dev.values(), self.panel.dev_guards.values()
        return evaluator_for(load_backbone(spec()), self.deltas, list(dev), list(guards))

    @cached_property
    def surrogate(self) -> Surrogate:
        """Predicts merges from the members' own vectors."""
        return self.evaluate.surrogate()

    @cached_property
    def objective(self) -> Objective:
        """What is maximised: domain quality minus the guards' losses."""
        return objective_of(self.evaluate(None))

    def model(self, recipe: MergeRecipe | None) -> Backbone:
        """The evaluator's backbone, turned into a merge or back into the base."""
        if recipe is None:
            self.evaluate.restore()
        else:
            self.evaluate.merged.apply(recipe)
        return self.evaluate.backbone

    def test(self, recipe: MergeRecipe) -> dict[str, Any]:
        """Score a merge on the test queries."""
        return summary(scores(self.model(recipe), self.panel.tests))


def objective_of(base: TrialScores) -> Objective:
    """What every search here maximises, from the base's scores on the development queries."""
    return Objective(base, penalty=2.0, tolerance=MAX_GUARD_LOSS)


def all_data_settings() -> TrainSettings:
    """As many steps as the experts together, at their smaller batch size."""
    steps = sum(settings.steps or 0 for settings in EXPERTS.values())
    return TrainSettings(steps=steps, batch_size=32, save_steps=50, learning_rate=2e-4, **SCHEDULE)


def search_cell(members: Members, method: str, seed: int, *, full: bool) -> dict[str, Any]:
    """Search one method's merges and score the best on the test queries."""

    def work() -> dict[str, Any]:
        section = SearchSection(methods=(method,), sampler="random", trials=POOL)
        space = Space(section, list(EXPERTS))
        pool = [recipe for _, recipe in random_candidates(space, seed=seed, most=POOL)]
        surrogate = members.surrogate
        guesses = [(number, surrogate.predict(recipe)) for number, recipe in enumerate(pool)]
        known = {number: members.objective(guess) for number, guess in guesses if guess is not None}
        # Half of the trials as the surrogate ranks them, half as they were drawn: equal weights come first.
        order = [*sorted(known, key=lambda number: -known[number])[: TRIALS // 2], *range(len(pool))]
        chosen = list(dict.fromkeys(order))[:TRIALS]
        predicted = {number: known.get(number) for number in chosen}
        return _tuned(members, [pool[number] for number in chosen], {"seed": seed, "predicted": predicted})

    return STORE.run(f"{method}{'-full' * full}-seed{seed}", {"full": full, "seed": seed}, work)


def all_data_cell(members: Members, *, full: bool) -> dict[str, Any]:
    """The model trained on everything, with as many tuning trials."""

    def work() -> dict[str, Any]:
        tried = [MergeRecipe(method="task_arithmetic", weights={ALL_DATA: share}) for share in SHARES]
        return _tuned(members, tried, {"training": members.all_data[1]})

    return STORE.run(
        "all-data" + "-full" * full, {"full": full, "all": all_data_settings().model_dump()}, work
    )


def fusion_cell(members: Members, *, full: bool) -> dict[str, Any]:
    """REFINE: the vectors of the all-data model and of the base, fused at its lambda, and the curve."""

    def work() -> dict[str, Any]:
        tuned = MergeRecipe(method="task_arithmetic", weights={ALL_DATA: 1.0})
        vectors = {}
        for name, recipe in (("base", None), ("tuned", tuned)):
            backbone = members.model(recipe)
            vectors[name] = {
                problem.name: (
                    encode_texts(backbone, list(problem.queries.values()), "query"),
                    encode_passages(backbone, problem),
                )
                for problem in members.panel.tests.values()
            }
        curve = lambda_curve(
            [
                FusionSet(
                    name,
                    name in DOMAINS,
                    *vectors["base"][problem.name],
                    *vectors["tuned"][problem.name],
                    partial(ndcg_by_query, problem),
                )
                for name, problem in members.panel.tests.items()
            ]
        )
        points = {
            f"{one.share:g}": {"domain": one.domain, "general": one.general, "worst_loss": one.worst_loss}
            for one in curve.points
        }
        default = curve.at(curve.default)
        if default is None:
            raise SystemExit(f"the curve has no point at {curve.default}")
        scores = {name: dict(values) for name, values in default.scores.items()}
        return {**summary(scores), "curve": points, "cost": curve.cost.statement}

    return STORE.run("fusion" + "-full" * full, {"full": full, "all": all_data_settings().model_dump()}, work)


def _tuned(members: Members, tried: list[MergeRecipe], notes: Mapping[str, Any]) -> dict[str, Any]:
    found = [(one, members.evaluate(one)) for one in tried]
    best, scored = max(found, key=lambda item: members.objective(item[1]))
    return {
        **members.test(best),
        **notes,
        "recipe": best.model_dump(mode="json"),
        "dev": figures(scored, members),
        "trials": [figures(score, members) | {"recipe": one.model_dump(mode="json")} for one, score in found],
    }


def figures(found: TrialScores, members: Members) -> dict[str, Any]:
    """A candidate on the development queries."""
    return {
        "domain": domain(found),
        "general": general(found),
        "worst_guard_loss": max(guard_losses(found, members.evaluate(None)).values()),
        "objective": members.objective(found),
        "seconds": round(found.seconds, 1),
    }


def chart(rows: Mapping[str, list[dict[str, Any]]], members: Members) -> str | None:
    """Every trial, domain against general, on the development queries."""
    base = members.evaluate(None)
    points = [ChartPoint("base", "base", domain(base), general(base) or 0.0)]
    for name, cells in rows.items():
        kind: Kind = "all_data" if name.startswith("all data") else "merge"
        for cell in cells:
            points += [
                ChartPoint(
                    f"{name} {number}", kind, trial["domain"], trial["general"], trial["worst_guard_loss"]
                )
                for number, trial in enumerate(cell.get("trials", ()))
            ]
    return pareto_svg(points, max_guard_loss=MAX_GUARD_LOSS)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="full test collections, not the panel's cuts")
    parser.add_argument("--methods", default=",".join(METHODS), help="of the merge methods, by comma")
    parser.add_argument("--seeds", type=int, default=1, help="searches of the winner, linear and ties")
    parser.add_argument("--json", metavar="FILE", help="write the means to this file")
    parser.add_argument("--chart", metavar="FILE", help="write the domain-against-general plot (SVG)")
    arguments = parser.parse_args()
    panel = Panel(full=arguments.full, dev_documents=DEV_DOCUMENTS)
    members, full = Members(panel), arguments.full
    rows = {"base": [base_cell(panel, full=full)]}
    rows |= {f"expert: {name}": [expert_cell(panel, name, 0, full=full)] for name in EXPERTS}
    rows["all data at once"] = [all_data_cell(members, full=full)]
    rows["fused vectors (REFINE, 0.35)"] = [fusion_cell(members, full=full)]
    methods = arguments.methods.split(",")
    for method in methods:
        rows[f"merged: {method}"] = [search_cell(members, method, 0, full=full)]
    best = max(methods, key=lambda method: rows[f"merged: {method}"][0]["dev"]["objective"])
    for seed in range(1, arguments.seeds):
        for method in dict.fromkeys([best, "linear", "ties"]):
            rows[f"merged: {method}"].append(search_cell(members, method, seed, full=full))
    print(table(rows))
    print(f"best on the development queries: {best}")
    if arguments.json:
        document = {name: [cell["means"] for cell in cells] for name, cells in rows.items()}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.chart and (drawing := chart(rows, members)) is not None:
        Path(arguments.chart).write_text(drawing + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
