from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate import significance
from stm_training.evaluate.bootstrap import METHODS, Method, t_quantile
from stm_training.evaluate.significance import Interval, paired_bootstrap

DIFFERENCES = st.lists(st.floats(-1, 1), min_size=1, max_size=50)


def test_no_differences_at_all_give_an_interval_of_nothing() -> None:
    assert paired_bootstrap(np.zeros(40)) == Interval(0.0, 0.0, 0.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_so() -> None:
    diffs = np.random.default_rng(0).normal(size=100)

    assert paired_bootstrap(diffs, seed=3) == paired_bootstrap(diffs, seed=3)
    assert paired_bootstrap(diffs, seed=3) != paired_bootstrap(diffs, seed=4)
    assert paired_bootstrap(diffs, seed=3) == pytest.approx(paired_bootstrap(diffs, seed=4), abs=0.02)


@given(diffs=DIFFERENCES)
@settings(max_examples=50, deadline=None)
def test_exchanging_the_systems_turns_the_interval_round(diffs: list[float]) -> None:
    forth = paired_bootstrap(diffs, samples=500)
    back = paired_bootstrap([-diff for diff in diffs], samples=500)

    assert (back.mean, back.lo, back.hi) == pytest.approx((-forth.mean, -forth.hi, -forth.lo), abs=1e-12)


@given(diffs=DIFFERENCES, method=st.sampled_from(["percentile", "bca", "studentised"]))
@settings(max_examples=100, deadline=None)
def test_intervals_by_quantiles_lie_within_the_differences(diffs: list[float], method: Method) -> None:
    interval = paired_bootstrap(diffs, samples=500, method=method)

    assert min(diffs) - 1e-12 <= interval.lo <= interval.hi <= max(diffs) + 1e-12


@given(diffs=DIFFERENCES)
@settings(max_examples=50, deadline=None)
def test_the_symmetric_interval_reaches_as_far_to_either_side_of_the_mean(diffs: list[float]) -> None:
    interval = paired_bootstrap(diffs, samples=500)

    assert interval.hi - interval.mean == pytest.approx(interval.mean - interval.lo, abs=1e-12)
    assert interval.lo <= interval.mean <= interval.hi


def test_gains_without_a_single_loss_do_not_prove_that_none_can_be_lost() -> None:
    diffs = [0.4, 0.3, *[0.0] * 58]

    assert paired_bootstrap(diffs).lo < 0
    assert paired_bootstrap(diffs, method="percentile").lo == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_every_interval_agrees_with_normal_theory_on_many_normal_differences(method: Method) -> None:
    diffs = np.random.default_rng(5).normal(0.2, 1.0, size=1000)

    interval = paired_bootstrap(diffs, method=method)

    reach = 1.96 * diffs.std() / np.sqrt(1000)
    assert interval.lo == pytest.approx(diffs.mean() - reach, abs=0.05 * reach)
    assert interval.hi == pytest.approx(diffs.mean() + reach, abs=0.05 * reach)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_percentile_and_bca_intervals_are_those_of_scipy(method: Method) -> None:
    stats = pytest.importorskip("scipy.stats")
    diffs = np.random.default_rng(6).exponential(1.0, size=40) - 0.5

    expected = stats.bootstrap(
        (diffs,), np.mean, n_resamples=9_999, method=method.replace("bca", "BCa"), random_state=0
    ).confidence_interval
    interval = paired_bootstrap(diffs, samples=10_000, method=method)

    assert (interval.lo, interval.hi) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_a_studentised_interval_leans_to_the_long_tail() -> None:
    diffs = np.random.default_rng(7).exponential(1.0, size=40)

    interval = paired_bootstrap(diffs, method="studentised")

    assert interval.hi - interval.mean > 1.2 * (interval.mean - interval.lo)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (59, 2.001)]
)
def test_students_t_has_the_quantiles_that_are_printed_in_tables(freedom: int, expected: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(expected, abs=0.0005)


def test_a_single_difference_has_an_interval_of_nothing() -> None:
    assert paired_bootstrap([0.3]) == pytest.approx(Interval(0.3, 0.3, 0.3))


def test_about_19_of_20_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        interval = paired_bootstrap(rng.normal(0.1, 1.0, size=100), samples=400, seed=seed)
        held += interval.lo <= 0.1 <= interval.hi

    assert 0.90 <= held / 300 <= 0.99


def test_the_width_is_that_of_the_normal_theory_for_normal_differences() -> None:
    diffs = np.random.default_rng(2).normal(size=400)

    interval = paired_bootstrap(diffs)

    assert interval.hi - interval.lo == pytest.approx(2 * 1.96 * diffs.std() / 20, rel=0.05)


def test_a_higher_level_gives_a_wider_interval() -> None:
    diffs = np.random.default_rng(3).normal(size=60)
    narrow, wide = paired_bootstrap(diffs, level=0.8), paired_bootstrap(diffs, level=0.99)

    assert wide.lo < narrow.lo < narrow.hi < wide.hi


def test_working_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    diffs = np.random.default_rng(4).normal(size=30)
    whole = paired_bootstrap(diffs, samples=1000)
    monkeypatch.setattr(significance, "_DRAWS_PER_BLOCK", 30 * 7)

    assert paired_bootstrap(diffs, samples=1000) == whole


@pytest.mark.parametrize("diffs", [[], [[0.1, 0.2]], [0.1, float("nan")]])
def test_differences_without_a_mean_are_refused(diffs: list[float]) -> None:
    with pytest.raises(DataError):
        paired_bootstrap(diffs)


@pytest.mark.parametrize("setting", [{"samples": 0}, {"level": 1.0}, {"level": 95}])
def test_settings_that_cannot_be_used_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        paired_bootstrap([0.1], **setting)


def test_an_interval_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no interval 'normal'; there are symmetric, percentile"):
        paired_bootstrap([0.1], method="normal")  # type: ignore[arg-type]
