from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.selection import choose

N = 80
BASE = np.random.default_rng(0).uniform(0.2, 0.8, size=N)
NOISE = np.random.default_rng(1).normal(0, 0.3, size=N)
CENTRED = NOISE - NOISE.mean()


def shifted(gain: float, spread: float = 0.1) -> np.ndarray:
    """Scores whose mean is exactly ``gain`` above the base's, with noise per query."""
    return np.asarray(BASE + gain + spread * CENTRED)


def test_the_candidate_with_the_highest_development_mean_ships() -> None:
    decision = choose({"base": BASE, "expert:a": shifted(0.02), "merged": shifted(0.05)})

    assert decision.shipped == "merged"
    assert [row.name for row in decision.table] == ["base", "merged", "expert:a"]
    assert "80 development queries" in decision.reason
    assert "+5.00 points" in decision.reason
    assert "95 % interval" in decision.reason


def test_the_base_ships_and_says_why_when_nothing_is_better() -> None:
    decision = choose({"base": BASE, "merged": shifted(-0.03), "expert:a": shifted(-0.01)})

    assert decision.shipped == "base"
    assert "none of the 2 candidates passed on 80 development queries" in decision.reason
    assert "The best of them, expert:a" in decision.reason
    assert "worse than the base" in decision.reason
    assert all(not row.passed and row.why_not for row in decision.table[1:])


def test_the_base_wins_a_tie() -> None:
    decision = choose({"merged": BASE.copy(), "base": BASE})

    assert decision.shipped == "base"
    assert "the same as the base" in decision.table[1].why_not


def test_among_equals_the_one_with_fewer_members_ships() -> None:
    same = shifted(0.05)
    candidates = {"base": BASE, "of three": same, "of two": same.copy(), "of four": same.copy()}

    decision = choose(candidates, members={"of three": 3, "of two": 2, "of four": 4})

    assert decision.shipped == "of two"


def test_significant_asks_for_an_interval_above_zero_where_mean_does_not() -> None:
    candidates = {"base": BASE, "merged": shifted(0.01, spread=1.0)}

    assert choose(candidates, ship_if="mean").shipped == "merged"
    cautious = choose(candidates, ship_if="significant")
    assert cautious.shipped == "base"
    assert "not significant" in cautious.reason
    row = cautious.table[1]
    assert row.ci95 is not None
    assert row.ci95[0] <= 0 < row.ci95[1]


def test_significant_lets_a_clear_gain_ship_even_if_another_mean_is_higher() -> None:
    candidates = {"base": BASE, "lucky": shifted(0.05, spread=3.0), "sure": shifted(0.04, spread=0.01)}

    assert choose(candidates, ship_if="significant").shipped == "sure"


def test_a_guard_keeps_back_the_best_candidate_and_the_next_one_ships() -> None:
    guards = {"arguana": {"base": BASE, "merged": shifted(-0.02), "expert:a": shifted(-0.001)}}

    decision = choose(
        {"base": BASE, "merged": shifted(0.08), "expert:a": shifted(0.03)}, guards=guards, max_guard_loss=0.5
    )

    assert decision.shipped == "expert:a"
    kept_back = next(row for row in decision.table if row.name == "merged")
    assert "lost 2.00 points on guard arguana (allowed: 0.5)" in kept_back.why_not
    assert kept_back.guard_deltas["arguana"] == pytest.approx(-2.0)
    assert "no guard lost more than 0.5 points" in decision.reason


@pytest.mark.parametrize(("loss", "shipped"), [(0.0049, "merged"), (0.005, "merged"), (0.0051, "base")])
def test_the_allowed_guard_loss_is_in_points_and_inclusive(loss: float, shipped: str) -> None:
    guards = {"general": {"base": np.full(20, 0.5), "merged": np.full(20, 0.5 - loss)}}

    decision = choose({"base": BASE, "merged": shifted(0.05)}, guards=guards, max_guard_loss=0.5)

    assert decision.shipped == shipped


def test_a_candidate_must_pass_every_guard_and_all_reasons_are_given() -> None:
    bad, good = {"base": BASE, "merged": shifted(-0.1)}, {"base": BASE, "merged": shifted(0.1)}

    decision = choose({"base": BASE, "merged": shifted(0.05)}, guards={"one": good, "two": bad, "three": bad})

    assert decision.shipped == "base"
    assert "guard two" in decision.table[1].why_not
    assert "guard three" in decision.table[1].why_not
    assert "guard one" not in decision.table[1].why_not


def test_the_choice_is_the_same_every_time() -> None:
    candidates = {"base": BASE, "merged": shifted(0.01, 1.0), "expert:a": shifted(0.02, 2.0)}

    assert choose(candidates, ship_if="significant", seed=5) == choose(
        candidates, ship_if="significant", seed=5
    )


def test_few_development_queries_are_told() -> None:
    decision = choose({"base": BASE[:8], "merged": BASE[:8] + 0.1})

    assert "With only 8 development queries" in decision.reason


def test_the_base_alone_ships() -> None:
    assert choose({"base": BASE}).reason == "base ships: there was no other candidate."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": {"merged": BASE}}, "no scores of base; found merged"),
        ({"candidates": {"base": BASE}, "ship_if": "always"}, "ship_if is 'always'"),
        ({"candidates": {"base": BASE}, "max_guard_loss": -1.0}, "max_guard_loss is -1"),
        (
            {"candidates": {"base": BASE, "m": BASE}, "guards": {"g": {"base": BASE}}},
            "guard 'g': no scores of m",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(**arguments)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (BASE[:5], r"merged has scores of shape \(5,\)"),
        (np.full(N, np.nan), "merged has scores that are not finite"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(scores: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose({"base": BASE, "merged": scores})
