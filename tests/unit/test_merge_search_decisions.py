"""Objective, Pareto set, early ends and the surrogate, on scores that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.objective import Objective
from stm_training.merge.search.pareto import choose_by, pareto_front
from stm_training.merge.search.pruning import FEWEST_QUERIES, Pruner
from stm_training.merge.search.records import StopEarly, Trial, TrialScores
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.study import search
from stm_training.merge.search.surrogate import (
    MemberVectors,
    Surrogate,
    SurrogateSet,
    combine,
    factors_of,
    spearman,
)

Vectors = NDArray[np.float32]


def queries(mean: float, n: int = 40, spread: float = 0.0, seed: int = 0) -> dict[str, float]:
    noise = np.random.default_rng(seed).normal(size=n)
    values = mean + spread * (noise - noise.mean())
    return {f"q{index}": float(value) for index, value in enumerate(values)}


def trial(number: int, domain: float, general: float, loss: float = 0.0, *, experts: int = 2) -> Trial:
    recipe = MergeRecipe(method="task_arithmetic", weights={f"e{n}": 0.5 for n in range(experts)})
    return Trial(
        number=number,
        recipe=recipe,
        value=domain,
        scores=TrialScores(),
        domain=domain,
        general=general,
        guard_losses={"guard": loss, "other": -1.0},
    )


def test_the_objective_counts_collections_alike_and_losses_beyond_the_tolerance() -> None:
    base = TrialScores(dev={"d": queries(0.5)}, guards={"g": queries(0.6), "h": queries(0.4)})
    objective = Objective(base, penalty=2.0, tolerance=0.5)
    dev = {"small": queries(0.8, n=5), "large": queries(0.6, n=100)}
    unharmed = TrialScores(dev=dev, guards={"g": queries(0.596), "h": queries(0.9)})
    assert objective(unharmed) == pytest.approx(0.7)
    harmed = TrialScores(dev=dev, guards={"g": queries(0.58), "h": queries(0.9)})
    assert objective(harmed) == pytest.approx(0.7 - 2 * (0.02 - 0.005))


def test_the_pareto_set_is_what_no_other_trial_beats_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(n, float(d), float(g)) for n, (d, g) in enumerate(rng.random((60, 2)))]

    def beaten(one: Trial) -> bool:
        return any(
            (other.domain or 0) >= (one.domain or 0) and (other.general or 0) >= (one.general or 0)
            for other in trials
            if other is not one
        )

    front = pareto_front(trials)
    assert set(front) == {n for n, one in enumerate(trials) if not beaten(one)}
    assert list(front) == sorted(front, key=lambda n: -(trials[n].domain or 0))


def test_trials_ended_early_and_repeats_are_not_on_the_pareto_set() -> None:
    ended = trial(0, 0.99, 0.99).model_copy(update={"value": None})
    same = [trial(1, 0.5, 0.5), trial(2, 0.5, 0.5)]
    assert pareto_front([ended, *same]) == (1,)


def test_the_choice_is_the_best_domain_within_the_allowed_loss_and_the_plainer_of_equals() -> None:
    trials = [
        trial(0, 0.9, 0.1, loss=3.0),
        trial(1, 0.8, 0.3, loss=0.5),
        trial(2, 0.8, 0.3, loss=0.4, experts=1),
        trial(3, 0.7, 0.5, loss=-1.0),
    ]
    assert choose_by(trials, 5.0) is trials[0]
    assert choose_by(trials, 0.5) is trials[2]
    assert choose_by(trials, 0.0) is trials[3]
    assert choose_by(trials, -2.0) is None  # the other guard forbids it


def pruner(best: TrialScores, base: TrialScores, penalty: float = 1.0) -> Pruner:
    return Pruner(lambda: best, Objective(base, penalty, tolerance=0.0), confidence=0.975)


def test_a_trial_is_ended_when_its_paired_difference_is_surely_below_the_best() -> None:
    best = TrialScores(part={"d": queries(0.6, spread=0.3)}, dev={"d": queries(0.6, spread=0.3)})
    worse = TrialScores(part={"d": queries(0.55, spread=0.3)}, stage="part")  # query by query
    assert "40 queries (part)" in pruner(best, best)(worse)
    unsure = TrialScores(part={"d": queries(0.55, spread=0.3, seed=1)}, stage="part")  # its own noise
    assert pruner(best, best)(unsure) == ""


def test_a_handful_of_queries_ends_nothing() -> None:
    best = TrialScores(part={"d": queries(0.9, n=FEWEST_QUERIES - 1)})
    worse = TrialScores(part={"d": queries(0.1, n=FEWEST_QUERIES - 1)}, stage="part")
    assert pruner(best, best)(worse) == ""


def test_a_best_trial_that_pays_a_penalty_ends_only_what_stays_below_its_objective() -> None:
    base = TrialScores(dev={"d": queries(0.5)}, guards={"g": queries(0.5)})
    best = TrialScores(dev={"d": queries(0.6)}, guards={"g": queries(0.45)})  # objective 0.55
    assert pruner(best, base)(TrialScores(dev={"d": queries(0.57)}, stage="dev")) == ""
    assert pruner(best, base)(TrialScores(dev={"d": queries(0.54)}, stage="dev")) != ""


class Staged:
    """Scores that fall with the distance from the best weight, in stages; counts what each costs."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        weight = 0.0 if recipe is None else recipe.weights["a"]
        value = 0.7 - abs(weight - 0.6)
        known = TrialScores(part={"d": queries(value, 20, 0.2)}, stage="part")
        steps = ({"dev": {"d": queries(value, 80, 0.2)}, "stage": "dev"},)
        for step in (*steps, {"guards": {"g": queries(0.5)}, "stage": "all"}):
            if stop is not None and (why := stop(known)):
                self.stages.append(known.stage)
                return known.model_copy(update={"stopped": why})
            known = known.model_copy(update=step)
        self.stages.append(known.stage)
        return known


def test_pruning_spares_most_trials_and_finds_the_same_best_merge(tmp_path: Path) -> None:
    weights = tuple(n / 20 for n in range(21))

    def run(pruning: bool) -> tuple[Staged, Trial | None, int]:
        settings = SearchSection(
            methods=("task_arithmetic",), weights=weights, trials=20, pruning=pruning, seed=1
        )
        staged = Staged()
        result = search(SearchJob(settings, ("a",), tmp_path / str(pruning), "x"), staged)
        assert len(result.trials) == 20
        assert all(one.scores.stopped for one in result.trials if one.pruned)
        return staged, result.best_trial, result.pruned

    spared, best, pruned = run(True)
    _, exact, none = run(False)
    assert best is not None and exact is not None
    assert best.recipe == exact.recipe
    assert none == 0
    assert pruned == spared.stages.count("part") >= 10


def test_pruning_may_be_turned_on_after_a_search_whose_scores_have_no_first_part(tmp_path: Path) -> None:
    def whole(recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        return Staged()(recipe).model_copy(update={"part": {}})

    weights = tuple(n / 10 for n in range(11))
    off = SearchSection(methods=("task_arithmetic",), weights=weights, trials=8, pruning=False)
    search(SearchJob(off, ("a",), tmp_path, "x"), whole)
    result = search(SearchJob(off.model_copy(update={"pruning": True}), ("a",), tmp_path, "x"), Staged())
    assert result.pruned > 0


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 6, 30).tolist(), rng.integers(0, 6, 30).tolist()
    assert spearman(first, second) == pytest.approx(float(stats.spearmanr(first, second).statistic))
    assert spearman([1.0, 2.0, 3.0], [5.0, 6.0, 60.0]) == pytest.approx(1.0)
    assert spearman([1.0, 1.0], [2.0, 3.0]) is None


def test_the_factors_of_a_merge_are_shares_of_each_experts_change() -> None:
    both = {"a": 0.6, "b": 0.2}
    assert factors_of(MergeRecipe(method="task_arithmetic", weights=both)) == both
    linear = MergeRecipe(method="linear", weights={"a": 3.0, "b": 1.0}, base_weight=4.0)
    assert factors_of(linear) == {"a": 0.375, "b": 0.125}
    ties = factors_of(MergeRecipe(method="ties", weights=both, density=0.5, scale=0.6))
    assert ties == pytest.approx({"a": 0.45, "b": 0.15})
    assert factors_of(MergeRecipe(method="model_stock", weights=both)) is None


def unit(values: Vectors) -> Vectors:
    scaled: Vectors = values / np.linalg.norm(values, axis=1, keepdims=True)
    return scaled


def test_combined_vectors_are_exact_at_the_base_and_at_one_expert_alone() -> None:
    rng = np.random.default_rng(0)
    base, a, b = (unit(rng.normal(size=(5, 8)).astype(np.float32)) for _ in range(3))
    experts = {"a": a, "b": b}
    np.testing.assert_allclose(combine(base, experts, {}), base, atol=1e-6)
    np.testing.assert_allclose(combine(base, experts, {"b": 1.0}), b, atol=1e-6)
    mixed = combine(base, experts, {"a": 0.5, "b": 0.25})
    np.testing.assert_allclose(mixed, unit(0.25 * base + 0.5 * a + 0.25 * b), atol=1e-6)


def surrogate_that_says(sign: float) -> Surrogate:
    """A collection whose score falls (sign 1) or rises with the distance of weight a from 0.6."""
    zero = np.array([[1.0, 0.0]], dtype=np.float32)
    one = np.array([[0.0, 1.0]], dtype=np.float32)

    def score(vectors: Vectors, documents: Vectors) -> Mapping[str, float]:
        weight = float(vectors[0, 1] / vectors[0].sum())
        return {"q": 0.7 - sign * abs(weight - 0.6)}

    vectors = {"a": MemberVectors(one, one)}
    return Surrogate([SurrogateSet("d", False, score, MemberVectors(zero, zero), vectors)])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_surrogate_picks_candidates_only_as_long_as_its_ranks_were_right(
    tmp_path: Path, sign: float
) -> None:
    settings = SearchSection(
        methods=("task_arithmetic",),
        weights=tuple(n / 50 for n in range(51)),
        trials=16,
        pruning=False,
        surrogate=True,
        surrogate_trials=6,
        surrogate_pool=8,
    )
    run = SearchJob(settings, ("a",), tmp_path, "x", seed=3)
    result = search(run, Staged(), surrogate=surrogate_that_says(sign))
    report = result.surrogate
    assert report is not None
    assert report.trials == 16
    assert report.spearman == pytest.approx(sign, abs=0.02)  # rounding parts ties
    assert not any(one.chosen_by_surrogate for one in result.trials[:6])
    if sign > 0:
        assert report.used == 10
        assert report.trusted == ("task_arithmetic",)
        assert report.mean_error == pytest.approx(0.0, abs=1e-6)
        mean = [np.mean([one.value for one in part]) for part in (result.trials[:6], result.trials[6:])]
        assert mean[1] > mean[0]
    else:
        assert (report.used, report.trusted) == (0, ())
