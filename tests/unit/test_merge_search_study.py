"""Searches with scores that can be worked out by hand: they find the optimum, resume, and repeat."""

from __future__ import annotations

import inspect
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from stm_retriever.errors import DataError
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.evaluator import ModelEvaluator, evaluator_for
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.records import SearchResult, StopEarly, TrialScores, recipe_key
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.study import search

EXPERTS = ("a", "b")
BEST = {"a": 0.7, "b": 0.3}
QUERIES = 20


def job(folder: Path, **changes: Any) -> SearchJob:
    settings = SearchSection.model_validate({"methods": ("task_arithmetic",), "pruning": False} | changes)
    return SearchJob(settings, EXPERTS, folder, "inputs")


def scores(domain: float, guard: float = 0.5) -> TrialScores:
    return TrialScores(
        dev={"dev": {f"q{n}": domain for n in range(QUERIES)}},
        guards={"guard": {f"g{n}": guard for n in range(QUERIES)}},
        seconds=0.25,
    )


class Bowl:
    """nDCG 0.7 at the best weights, less the farther away; the guard suffers from expert a beyond 0.6."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_at = fail_at

    def __call__(self, recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        self.asked.append(recipe_key(recipe))
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        weights = {} if recipe is None else recipe.weights
        away = sum((weights.get(name, 0.0) - best) ** 2 for name, best in BEST.items())
        return scores(0.7 - 0.5 * away, 0.5 - 0.1 * max(0.0, weights.get("a", 0.0) - 0.6))


@pytest.mark.parametrize(("sampler", "trials", "near"), [("grid", 30, 0.0), ("random", 40, 1e-2)])
def test_listed_candidates_find_the_best_point(
    tmp_path: Path, sampler: str, trials: int, near: float
) -> None:
    result = search(job(tmp_path, sampler=sampler, trials=trials, guard_penalty=0), Bowl())
    assert result.best_trial is not None
    assert result.best_trial.domain == pytest.approx(0.7, abs=1e-9 + near)
    keys = [recipe_key(trial.recipe) for trial in result.trials]
    assert len(keys) == len(set(keys)) == min(trials, 24 if sampler == "grid" else trials)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_that_learn_end_nearer_to_the_best_point_than_they_began(
    tmp_path: Path, sampler: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = search(job(tmp_path, sampler=sampler, trials=36, guard_penalty=0), Bowl())
    values = [trial.value or 0.0 for trial in result.trials]
    assert sum(values[-10:]) / 10 > sum(values[:10]) / 10 + 0.02
    assert max(values) > 0.69


def test_a_penalty_moves_the_best_merge_to_where_the_guard_is_safe(tmp_path: Path) -> None:
    weights = (0.3, 0.5, 0.7)
    free = search(job(tmp_path, weights=weights, guard_penalty=0), Bowl())
    strict = search(job(tmp_path, weights=weights, guard_penalty=50), Bowl())
    assert free.best_trial is not None and strict.best_trial is not None
    assert free.best_trial.recipe.weights["a"] == 0.7
    assert strict.best_trial.recipe.weights["a"] == 0.5
    assert strict.best_trial.worst_guard_loss <= 0.5 < free.best_trial.worst_guard_loss


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "cmaes", "greedy"])
def test_a_stopped_search_goes_on_and_evaluates_nothing_twice(tmp_path: Path, sampler: str) -> None:
    trials = 4 if sampler == "greedy" else 8
    whole = Bowl()
    expected = search(job(tmp_path / "whole", sampler=sampler, trials=trials), whole)
    first, second = Bowl(fail_at=4), Bowl()
    with pytest.raises(KeyboardInterrupt):
        search(job(tmp_path / "cut", sampler=sampler, trials=trials), first)
    result = search(job(tmp_path / "cut", sampler=sampler, trials=trials), second)
    assert len(result.trials) == len(expected.trials) == trials
    assert not set(first.asked[:3]) & set(second.asked)
    assert first.asked[3] in second.asked  # what was under way is run again
    if sampler not in ("tpe", "cmaes"):  # whose draws depend on the order of the trials
        assert {recipe_key(t.recipe) for t in result.trials} == {
            recipe_key(t.recipe) for t in expected.trials
        }


@pytest.mark.parametrize("sampler", ["grid", "tpe", "cmaes"])
def test_the_same_search_twice_tries_the_same_merges_and_another_seed_others(
    tmp_path: Path, sampler: str
) -> None:
    def tried(folder: str, seed: int) -> list[str]:
        result = search(job(tmp_path / folder, sampler=sampler, trials=8, seed=seed), Bowl())
        return [recipe_key(trial.recipe) for trial in result.trials]

    assert tried("one", 1) == tried("two", 1) != tried("three", 2)


def test_more_trials_continue_a_finished_search(tmp_path: Path) -> None:
    short = search(job(tmp_path, trials=5), Bowl())
    more = Bowl()
    result = search(job(tmp_path, trials=9), more)
    assert len(short.trials) == 5
    assert len(more.asked) == 4
    keys = [recipe_key(trial.recipe) for trial in result.trials]
    assert keys[:5] == [recipe_key(trial.recipe) for trial in short.trials]
    assert len(set(keys)) == 9


def test_a_finished_search_is_read_back_without_any_evaluation(tmp_path: Path) -> None:
    expected = search(job(tmp_path, trials=6), Bowl())
    again = Bowl()
    assert search(job(tmp_path, trials=6), again) == expected
    assert again.asked == []


def test_other_inputs_do_not_go_on_with_this_searchs_scores(tmp_path: Path) -> None:
    search(job(tmp_path, trials=3), Bowl())
    other = SearchJob(SearchSection(methods=("task_arithmetic",), trials=3), EXPERTS, tmp_path, "others")
    asked = Bowl()
    search(other, asked)
    assert len(asked.asked) == 4


def test_the_storage_is_optunas_with_figures_for_its_dashboard_and_no_scores_per_query(
    tmp_path: Path,
) -> None:
    result = search(job(tmp_path, sampler="cmaes", trials=12), Bowl())
    study = optuna.load_study(study_name=result.study, storage=f"sqlite:///{result.storage}")
    assert len(study.trials) == 12
    assert study.best_value == pytest.approx(max(trial.value or 0 for trial in result.trials))
    assert set(study.best_trial.params) == {"method", "weight:a", "weight:b"}
    assert {"domain", "general", "guard_losses"} <= set(study.best_trial.user_attrs)
    with sqlite3.connect(result.storage) as connection:
        text = "\n".join(connection.iterdump())
    assert '"q1"' not in text
    assert "cma:" not in text  # where Optuna's own sampler keeps its pickles


def test_a_result_is_the_same_after_being_written_to_json_and_read(tmp_path: Path) -> None:
    result = search(job(tmp_path, trials=6), Bowl())
    assert SearchResult.model_validate_json(result.model_dump_json()) == result
    assert set(result.trials[0].scores.dev["dev"]) == {f"q{n}" for n in range(QUERIES)}
    assert result.seconds == pytest.approx(0.25 * 7)


def soup_of(values: dict[str, float]) -> Callable[..., TrialScores]:
    """Scores of averages by their members; the base is a member where it has a weight."""

    def evaluate(recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        members = ["base"] if recipe is None else sorted(recipe.weights)
        if recipe is not None and recipe.base_weight:
            members.append("base")
            assert recipe.base_weight == pytest.approx(next(iter(recipe.weights.values())))
        return scores(values["+".join(sorted(members))])

    return evaluate


def test_the_greedy_soup_takes_the_best_first_and_leaves_out_what_harms(tmp_path: Path) -> None:
    values = {"base": 0.3, "a": 0.5, "b": 0.6, "a+b": 0.55, "b+base": 0.65}
    result = search(job(tmp_path, sampler="greedy"), soup_of(values))
    assert [trial.value for trial in result.trials] == pytest.approx([0.5, 0.6, 0.55, 0.65])
    assert result.best_trial is not None
    assert dict(result.best_trial.recipe.weights) == {"b": 1.0}
    assert result.best_trial.recipe.base_weight == 1.0


def test_the_greedy_soup_may_start_from_the_base(tmp_path: Path) -> None:
    values = {"base": 0.7, "a": 0.5, "b": 0.6, "b+base": 0.6, "a+base": 0.71}
    result = search(job(tmp_path, sampler="greedy"), soup_of(values))
    assert [trial.value for trial in result.trials] == pytest.approx([0.5, 0.6, 0.6, 0.71])


def test_without_development_queries_there_is_nothing_to_search_by(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="development"):
        search(job(tmp_path), lambda recipe, stop=None: TrialScores())


def test_there_is_no_way_in_for_test_queries() -> None:
    for callable_ in (search, evaluator_for, ModelEvaluator.__init__, ModelEvaluator.__call__):
        assert not [name for name in inspect.signature(callable_).parameters if "test" in name]
    for record in (SearchJob, SearchSection, TrialScores, SearchResult):
        assert not [name for name in inspect.signature(record).parameters if "test" in name]
