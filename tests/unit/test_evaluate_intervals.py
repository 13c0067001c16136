"""The simulation behind the choice of interval: does it test what is shipped, on what it says?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import intervals
from stm_training.evaluate.bootstrap import DEFAULT, METHODS, Method, interval
from stm_training.evaluate.significance import paired_bootstrap


@pytest.fixture(scope="module")
def population() -> intervals.Population:
    rng = np.random.default_rng(0)
    kind = rng.random(300)
    sizes = np.where(kind < 0.75, 0.0, np.where(kind < 0.9, rng.beta(1, 2, 300), -rng.beta(1, 3, 300)))
    return intervals.fit("made up", sizes)


@pytest.mark.parametrize("method", METHODS)
def test_many_samples_at_once_get_the_interval_that_each_would_get_alone(
    population: intervals.Population, method: Method
) -> None:
    samples = population.draw((3, 60), np.random.default_rng(1))

    lo, hi = interval(method, intervals.resample(samples, 400, seed=7), 0.95)

    for row, values in enumerate(samples):
        alone = paired_bootstrap(values, samples=400, seed=7, method=method)
        assert (lo[row], hi[row]) == pytest.approx((alone.lo, alone.hi), abs=1e-9)


def test_the_fitted_population_has_the_shares_and_the_mean_of_the_differences(
    population: intervals.Population,
) -> None:
    drawn = population.draw((1, 200_000), np.random.default_rng(2))[0]

    assert (drawn == 0).mean() == pytest.approx((population.real == 0).mean(), abs=0.005)
    assert population.mean == pytest.approx(population.real.mean(), abs=1e-9)
    assert drawn.mean() == pytest.approx(population.mean, abs=0.002)
    assert drawn.std() == pytest.approx(population.real.std(), rel=0.05)
    assert -1.0 <= drawn.min() <= drawn.max() <= 1.0


def test_only_comparisons_of_mostly_zeros_with_gains_and_losses_are_used() -> None:
    zeros = np.zeros(60)

    assert intervals.usable(np.concatenate([zeros, [0.1, 0.2, 0.3, -0.1, -0.2, -0.3]]))
    assert not intervals.usable(np.concatenate([zeros, [0.1, 0.2, 0.3, -0.1]]))
    assert not intervals.usable(np.linspace(-1, 1, 50))


def test_comparisons_are_read_from_stored_cells_and_rounding_errors_are_ties(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for name, score in (("base", 0.3), ("tuned", 0.1 + 0.2)):
        cell = {"scores": {"set": {"q1": score, "q2": 0.5 + (name == "tuned") / 4}}}
        (folder / f"{name}.json").write_text(json.dumps(cell))
    (tmp_path / "other.json").write_text("{}")

    ((name, diffs),) = intervals.comparisons(tmp_path)

    assert name == "table/tuned/set"
    assert diffs.tolist() == [0.0, 0.25]


def test_the_default_covers_the_true_mean_and_percentile_does_so_less_often(
    population: intervals.Population,
) -> None:
    found = intervals.misses(population, 60, empirical=False, samples=400, resamples=500, seed=3)
    missed = {method: one["above"] + one["below"] for method, one in found.items()}

    assert 0.02 <= missed[DEFAULT] <= 0.09
    assert missed[DEFAULT] < missed["percentile"] < missed["bca"]


def test_the_default_is_what_the_stored_table_chose() -> None:
    stored = json.loads((intervals.RESULTS / "intervals.json").read_text())

    assert stored["chosen"] == intervals.chosen(stored["rows"]) == DEFAULT
    assert {row["n"] for row in stored["rows"]} == set(intervals.SIZES)
