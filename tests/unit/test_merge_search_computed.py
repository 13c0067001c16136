"""LM-Cocktail and fused vectors beside the trials of a search."""

from __future__ import annotations

import pytest

from stm_training.merge.cocktail import cocktail_recipe, member_losses
from stm_training.merge.search.computed import fused, with_cocktail
from stm_training.merge.search.evaluator import evaluator_for
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.objective import domain
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.study import search
from tests.unit.test_merge_search_evaluator import backbone, experts, problem

__all__ = ["backbone", "experts"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cocktail_is_one_more_trial_of_the_search(backbone, experts, tmp_path) -> None:
    dev, guards = [problem("one", 1), problem("two", 2)], [problem("guard", 3)]
    settings = SearchSection(trials=3, cocktail_examples=6, pruning=False)
    job = SearchJob(settings, ("a", "b"), tmp_path, "inputs")
    with evaluator_for(backbone, experts, dev, guards) as evaluate:
        plain = search(job, evaluate)
        result = with_cocktail(plain, settings, ("a", "b"), evaluate, dev, 0.5)
        examples = [pair for row in zip(_pairs(dev[0]), _pairs(dev[1]), strict=True) for pair in row][:6]
        expected = cocktail_recipe(member_losses(evaluate.merged, examples))
        extra = result.trials[-1]
        assert len(result.trials) == len(plain.trials) + 1
        assert extra.recipe == expected
        assert extra.scores == evaluate(expected).model_copy(update={"seconds": extra.scores.seconds})
    assert extra.domain == pytest.approx(domain(extra.scores))
    assert result.best_trial is max(result.trials, key=lambda trial: trial.value or 0)
    weights = {"": expected.base_weight, **expected.weights}
    assert sum(weights.values()) == pytest.approx(1)


def test_no_cocktail_is_tried_unless_asked_for(backbone, experts, tmp_path) -> None:
    dev = [problem("one", 1)]
    settings = SearchSection(trials=2, pruning=False)
    with evaluator_for(backbone, experts, dev) as evaluate:
        result = search(SearchJob(settings, ("a", "b"), tmp_path, "inputs"), evaluate)
        assert with_cocktail(result, settings, ("a", "b"), evaluate, dev, 0.5) is result


def test_the_lambda_curve_starts_at_the_base_and_ends_at_the_merge(backbone, experts) -> None:
    dev, guards = [problem("one", 1)], [problem("guard", 3)]
    with evaluator_for(backbone, experts, dev, guards) as evaluate:
        base = evaluate(None)
        merge = cocktail_recipe(member_losses(evaluate.merged, _pairs(dev[0])[:4]))
        tuned = evaluate(merge)
        curve = fused(evaluate, merge, dev, guards)
    assert (curve.points[0].share, curve.points[-1].share) == (0.0, 1.0)
    assert curve.points[0].scores["one"] == base.dev["one"]
    assert curve.points[-1].scores["one"] == tuned.dev["one"]
    assert curve.points[-1].scores["guard"] == tuned.guards["guard"]
    assert curve.at(0.35) is not None


def _pairs(problem):
    from stm_training.data.records import Pair

    texts = {passage.id: passage.content for passage in problem.passages}
    return [
        Pair(
            query=text,
            positive=texts[next(iter(problem.qrels[query]))],
            query_id=query,
            positive_id=next(iter(problem.qrels[query])),
        )
        for query, text in problem.queries.items()
    ]
