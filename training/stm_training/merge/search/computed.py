"""Merges that are computed rather than drawn, beside the trials of a search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stm_training.data.records import Pair
from stm_training.merge.cocktail import cocktail_recipe, member_losses
from stm_training.merge.fusion import FusionCurve, FusionSet, lambda_curve
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.evaluator import ModelEvaluator, ndcg_by_query
from stm_training.merge.search.objective import Objective, domain, general, guard_losses
from stm_training.merge.search.pareto import pareto_front
from stm_training.merge.search.records import SearchResult, Trial, TrialScores
from stm_training.merge.search.settings import SearchSection
from stm_training.pipeline.collections import Problem, document_id


def with_cocktail(
    result: SearchResult,
    settings: SearchSection,
    members: Sequence[str],
    evaluate: ModelEvaluator,
    dev: Sequence[Problem],
    tolerance: float,
) -> SearchResult:
    """The search with LM-Cocktail's merge as one more trial, where the settings want it.

    Args:
        result: A finished search.
        settings: ``cocktail_examples`` and the guards' penalty.
        members: Experts that may be in it, beside the base.
        evaluate: Scores it.
        dev: Development problems; the examples come from all of them in turn.
        tolerance: Loss on a guard that costs nothing, in points (0-100).

    Raises:
        DataError: If there are fewer than two examples.
    """
    if not settings.cocktail_examples:
        return result
    rows = [_pairs(problem) for problem in dev]
    turns = [row[place] for place in range(max(map(len, rows))) for row in rows if place < len(row)]
    losses = member_losses(evaluate.merged, turns[: settings.cocktail_examples], experts=members)
    recipe = cocktail_recipe(losses)
    objective = Objective(result.base, settings.guard_penalty, tolerance)
    return with_trial(result, recipe, evaluate(recipe), objective)


def fused(
    evaluate: ModelEvaluator, tuned: MergeRecipe, dev: Sequence[Problem], guards: Sequence[Problem]
) -> FusionCurve:
    """Score the fused vectors of the base and a merge by lambda (REFINE); encodes everything with each."""
    other, base = evaluate.vectors(tuned), evaluate.vectors(None)
    return lambda_curve(
        [
            FusionSet(
                problem.name,
                inside,
                base[problem.name].queries,
                base[problem.name].documents,
                other[problem.name].queries,
                other[problem.name].documents,
                partial(ndcg_by_query, problem),
            )
            for inside, problems in ((True, dev), (False, guards))
            for problem in problems
        ]
    )


def with_trial(
    result: SearchResult, recipe: MergeRecipe, scores: TrialScores, objective: Objective
) -> SearchResult:
    """The search with one more trial, whose merge was scored in full.

    Args:
        result: A finished search.
        recipe: The merge.
        scores: What it scores.
        objective: The search's.
    """
    trial = Trial(
        number=1 + max((one.number for one in result.trials), default=-1),
        recipe=recipe,
        value=objective(scores),
        scores=scores,
        domain=domain(scores),
        general=general(scores),
        guard_losses=guard_losses(scores, result.base),
        seconds=scores.seconds,
    )
    trials = (*result.trials, trial)
    best = result.best_trial
    wins = best is None or (trial.value or 0.0) > (best.value or 0.0)
    return result.model_copy(
        update={
            "trials": trials,
            "best": len(trials) - 1 if wins else result.best,
            "pareto": pareto_front(trials),
            "seconds": result.seconds + scores.seconds,
        }
    )


def _pairs(problem: Problem) -> list[Pair]:
    """Each query with its best document's first passage."""
    first: dict[str, str] = {}
    for passage in problem.passages:
        first.setdefault(document_id(passage), passage.content)
    pairs = []
    for query, text in problem.queries.items():
        grades = {name: grade for name, grade in problem.qrels[query].items() if grade > 0 and name in first}
        if grades:
            best = max(grades, key=lambda name: grades[name])
            pairs.append(Pair(query=text, positive=first[best], query_id=query, positive_id=best))
    return pairs
