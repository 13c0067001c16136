"""Seeded orders that can be entered anywhere, and shares of sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_training.finetune import mixing
from stm_training.finetune.mixing import (
    SourceDraws,
    cycle,
    draw_sources,
    places_by_source,
    random_bits,
    shuffled,
    source_shares,
    uniforms,
)


@given(start=st.integers(0, 40), count=st.integers(0, 40))
def test_a_stream_can_be_entered_anywhere(start: int, count: int) -> None:
    whole = random_bits("stream", 0, 80)
    assert random_bits("stream", start, count).tolist() == whole[start : start + count].tolist()
    assert len(set(whole.tolist())) == 80


def test_numbers_are_spread_evenly_and_differ_between_streams() -> None:
    numbers = uniforms("0/rows", 0, 100_000)
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = np.bincount((numbers * 20).astype(int), minlength=20)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
    other = uniforms("1/rows", 0, 100_000)
    for left, right in ((numbers, other), (numbers[:-1], numbers[1:])):
        assert abs(float(np.corrcoef(left, right)[0, 1])) < 0.013  # four standard deviations


def test_orders_are_permutations_each_of_its_own_and_no_place_is_favoured() -> None:
    orders = [shuffled("0/rows", number, 5).tolist() for number in range(6000)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    counts = np.unique(np.array(orders) @ 5 ** np.arange(5), return_counts=True)[1]
    assert len(counts) == 120  # every order comes
    assert ((counts - 50) ** 2 / 50).sum() < 173.6  # chi-squared, 119 degrees of freedom, p = 0.001


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), start=st.integers(0, 60), count=st.integers(0, 60), at_once=st.integers(1, 30))
def test_a_cycle_is_passes_one_after_the_other_entered_anywhere(
    size: int, start: int, count: int, at_once: int
) -> None:
    rows = np.arange(100, 100 + size)
    expected = np.concatenate([rows[shuffled("s", number, size)] for number in range(120 // size + 2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_ROWS_AT_ONCE", at_once)
        assert cycle(rows, "s", start, count).tolist() == expected[start : start + count].tolist()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.9, 0.09, 0.01]), (2.0, [900**0.5, 90**0.5, 10**0.5]), (1e9, [1 / 3] * 3)],
)
def test_shares_are_sizes_to_the_power_of_one_over_the_temperature(
    temperature: float, expected: list[float]
) -> None:
    shares = source_shares(np.array([900, 90, 10]), temperature)
    assert shares.tolist() == pytest.approx((np.array(expected) / sum(expected)).tolist())


def test_draws_follow_the_shares_and_an_epoch_begins_where_the_last_one_ended() -> None:
    shares = np.array([0.7, 0.2, 0.1])
    draws = SourceDraws(shares, "s", per_epoch=1000)
    whole = draw_sources(shares, "s", 0, 5000)
    assert np.concatenate([draws.of_epoch(number) for number in range(5)]).tolist() == whole.tolist()
    assert draws.before(4).tolist() == np.bincount(whole[:4000]).tolist()
    assert draws.before(0).tolist() == [0, 0, 0]
    assert np.bincount(whole).tolist() == pytest.approx((5000 * shares).tolist(), abs=130)


def test_a_single_source_is_always_drawn() -> None:
    assert draw_sources(np.array([1.0]), "s", 0, 50).tolist() == [0] * 50


@given(drawn=st.lists(st.integers(0, 4), max_size=30))
def test_every_draw_has_its_place(drawn: list[int]) -> None:
    found = {source: places.tolist() for source, places in places_by_source(np.array(drawn, np.int64), 5)}
    assert found == {s: [n for n, d in enumerate(drawn) if d == s] for s in sorted(set(drawn))}
