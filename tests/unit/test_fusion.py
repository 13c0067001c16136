"""Fusing rankings: reciprocal ranks by the paper's formula, weighted scores by theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_retriever.fusion import reciprocal_ranks, weighted_scores

RANKINGS = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8), min_size=1, max_size=3)
SCORES = st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1), max_size=6)
POSITIVE = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 30), max_size=6)


def test_reciprocal_ranks_are_summed_with_the_constant_of_the_paper() -> None:
    fused = reciprocal_ranks([["a", "b", "c"], ["c", "a"]])
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert list(fused) == ["a", "c", "b"]


def test_a_smaller_constant_lets_the_first_ranks_stand_out() -> None:
    rankings = [["a", "b", "c"], ["d", "b", "c"], ["e", "c", "b"]]
    assert next(iter(reciprocal_ranks(rankings, k=60))) == "b"
    assert next(iter(reciprocal_ranks([["a", "b"], ["c", "b"], ["a", "d"]], k=0))) == "a"


def test_equal_ones_keep_the_order_in_which_they_appear() -> None:
    assert list(reciprocal_ranks([["x", "y"], ["y", "x"]])) == ["x", "y"]


@given(RANKINGS)
def test_what_is_higher_in_every_ranking_is_higher_in_the_fused_one(rankings: list[list[str]]) -> None:
    place = {name: rank for rank, name in enumerate(reciprocal_ranks(rankings))}
    assert set(place) == {name for ranking in rankings for name in ranking}
    for a in place:
        for b in place:
            if any(b in row for row in rankings) and all(
                b not in row or (a in row and row.index(a) < row.index(b)) for row in rankings
            ):
                assert place[a] < place[b]


def test_weighted_scores_scale_from_the_least_possible_to_the_greatest_found() -> None:
    fused = weighted_scores({"a": 0.8, "b": 0.0}, {"b": 12.0, "c": 6.0}, alpha=0.25)
    assert fused["a"] == pytest.approx(0.25)
    assert fused["b"] == pytest.approx(0.25 * 1.0 / 1.8 + 0.75)
    assert fused["c"] == pytest.approx(0.75 * 0.5)
    assert list(fused) == ["b", "c", "a"]


@given(SCORES, POSITIVE)
def test_alpha_at_its_ends_leaves_one_of_the_two(
    cosines: dict[str, float], lexical: dict[str, float]
) -> None:
    dense = [name for name in weighted_scores(cosines, lexical, alpha=1.0) if name in cosines]
    assert [cosines[name] for name in dense] == pytest.approx(sorted(cosines.values(), reverse=True))
    words = [name for name in weighted_scores(cosines, lexical, alpha=0.0) if name in lexical]
    assert [lexical[name] for name in words] == sorted(lexical.values(), reverse=True)


@given(SCORES, POSITIVE, st.floats(0, 1))
def test_weighted_scores_lie_between_0_and_1(
    cosines: dict[str, float], lexical: dict[str, float], alpha: float
) -> None:
    fused = weighted_scores(cosines, lexical, alpha=alpha)
    assert all(0.0 <= score <= 1.0 + 1e-9 for score in fused.values())
    assert set(fused) == set(cosines) | set(lexical)


def test_nothing_fused_is_nothing() -> None:
    assert reciprocal_ranks([[], []]) == {}
    assert weighted_scores({}, {}) == {}
