from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.permutation import (
    EXACT_UP_TO,
    bootstrap_test,
    effect_size,
    holm,
    permutation_test,
)


def test_every_assignment_of_signs_is_tried_when_there_are_few() -> None:
    diffs = [0.5, -0.1, 0.3, 0.0, 0.2]
    sums = [
        abs(sum(sign * diff for sign, diff in zip(signs, diffs, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]

    expected = sum(value >= abs(sum(diffs)) - 1e-12 for value in sums) / 2**5

    assert permutation_test(diffs) == pytest.approx(expected)
    assert permutation_test(diffs, seed=1) == permutation_test(diffs, seed=2)  # nothing is drawn


def test_all_gains_of_one_size_have_the_p_of_a_sign_test() -> None:
    assert permutation_test([0.1] * 5) == pytest.approx(2 / 2**5)


def test_drawn_signs_agree_with_all_signs() -> None:
    diffs = np.random.default_rng(0).normal(0.2, 1.0, size=EXACT_UP_TO)
    exact = permutation_test(diffs)
    padded = np.concatenate([diffs, [1e-9]])  # one more than can be tried: now signs are drawn

    assert permutation_test(padded, samples=20_000) == pytest.approx(exact, abs=0.015)


def test_queries_on_which_nothing_differs_change_nothing() -> None:
    diffs = np.random.default_rng(1).normal(0.1, 1.0, size=40)

    assert permutation_test(diffs) == permutation_test(np.concatenate([diffs, np.zeros(500)]))
    assert permutation_test(np.zeros(10)) == bootstrap_test(np.zeros(10)) == 1.0


def test_p_values_are_uniform_under_the_null_on_differences_as_they_are_here() -> None:
    rng = np.random.default_rng(5)
    p_values = []
    for trial in range(500):
        zero = rng.random(120) < 0.7
        sizes = np.where(zero, 0.0, rng.beta(0.8, 1.6, size=120)) * rng.choice([-1.0, 1.0], size=120)
        p_values.append(permutation_test(sizes, samples=499, seed=trial))

    ordered = np.sort(p_values)
    distance = np.abs(ordered - (np.arange(500) + 0.5) / 500).max()
    assert distance < 1.63 / np.sqrt(500)  # Kolmogorov-Smirnov at 1 %
    assert 0.03 <= np.mean(ordered <= 0.05) <= 0.07


def test_a_clear_difference_has_the_smallest_p_that_can_be_had_and_never_zero() -> None:
    diffs = np.full(60, 0.3) + np.random.default_rng(2).normal(0, 0.01, 60)

    assert (
        permutation_test(diffs, samples=999) == bootstrap_test(diffs, samples=999) == pytest.approx(1 / 1000)
    )


@given(diffs=st.lists(st.floats(-1, 1), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_exchanging_the_systems_does_not_change_p(diffs: list[float]) -> None:
    assert permutation_test(diffs, samples=200) == permutation_test([-diff for diff in diffs], samples=200)
    assert 0 < permutation_test(diffs, samples=200) <= 1


def test_the_bootstrap_test_agrees_with_the_permutation_test_on_many_queries() -> None:
    diffs = np.random.default_rng(3).normal(0.12, 1.0, size=300)

    assert bootstrap_test(diffs) == pytest.approx(permutation_test(diffs), abs=0.02)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        p_values = rng.beta(0.5, 4, size=6).tolist()
        rejected, ordered = set(), sorted(range(6), key=p_values.__getitem__)
        for place, index in enumerate(ordered):
            if p_values[index] > 0.05 / (6 - place):
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def test_the_effect_size_is_the_mean_in_standard_deviations_of_the_differences() -> None:
    diffs = np.random.default_rng(6).normal(0.3, 0.6, size=200)

    assert effect_size(diffs) == pytest.approx(diffs.mean() / diffs.std(ddof=1))
    assert effect_size(np.zeros(5)) == 0.0
    assert effect_size([0.2, 0.2, 0.2]) is None
    assert effect_size([0.2]) is None


@pytest.mark.parametrize("diffs", [[], [[0.1]], [0.1, float("inf")]])
def test_differences_that_cannot_be_tested_are_refused(diffs: list[float]) -> None:
    for function in (permutation_test, bootstrap_test, effect_size):
        with pytest.raises(DataError):
            function(diffs)


def test_no_samples_and_p_values_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples is 0"):
        permutation_test([0.1], samples=0)
    with pytest.raises(ConfigError, match="samples is 0"):
        bootstrap_test([0.1], samples=0)
    with pytest.raises(DataError, match=r"1\.2 is no p-value"):
        holm([0.1, 1.2])
