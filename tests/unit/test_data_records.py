"""A teacher's scores stay beside their texts, whatever happens to a pair's negatives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stm_retriever.errors import DataError
from stm_training.data.records import Pair
from stm_training.filtering.negatives import drop_by_text
from stm_training.filtering.settings import NegativeFilterSection
from stm_training.synthesize.filters import DropLog

SCORED = Pair("q", "p", ("a", "b", "c"), scores=(9.0, 1.0, 2.0, 3.0))


def test_scores_follow_their_texts_when_negatives_are_dropped_or_reordered() -> None:
    assert SCORED.with_negatives(["c", "a"]).scores == (9.0, 3.0, 1.0)
    assert SCORED.with_negatives([]) == Pair("q", "p", scores=(9.0,))
    assert SCORED.with_negatives(SCORED.negatives) == SCORED


def test_a_pair_with_an_unscored_negative_has_no_scores_left() -> None:
    assert SCORED.with_negatives(["a", "mined"]) == Pair("q", "p", ("a", "mined"))
    assert Pair("q", "p", ("a",)).with_negatives(["b"]) == Pair("q", "p", ("b",))


def test_a_text_that_stands_twice_keeps_its_first_score() -> None:
    twice = Pair("q", "p", ("a", "a", "b"), scores=(9.0, 1.0, 5.0, 2.0))
    assert twice.with_negatives(["a", "b"]).scores == (9.0, 1.0, 2.0)


@pytest.mark.parametrize("scores", [(1.0,), (1.0, 0.5), (1.0, float("inf"), 0.0, 0.0)])
def test_a_pair_cannot_be_made_with_scores_that_do_not_fit(scores: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"The pair of query 'q' has .*with_negatives"):
        Pair("q", "p", ("a", "b", "c"), scores=scores)


def test_replacing_negatives_by_hand_is_refused_where_scores_would_go_astray() -> None:
    with pytest.raises(DataError, match="4 scores for 1 positive and 0 negatives"):
        replace(SCORED, negatives=())


def test_filters_keep_scores_beside_the_negatives_that_stay() -> None:
    texts = ("iron tablets are taken for months", "P!", "an inhaler opens the airways within minutes")
    pair = Pair("q", "p", texts, scores=(4.0, 1.0, 2.0, 3.0))
    settings = NegativeFilterSection(shortest=1)
    (kept,) = drop_by_text([pair], settings, DropLog(), {"q": frozenset({"p"})})
    assert kept.negatives == (texts[0], texts[2])
    assert kept.scores == (4.0, 1.0, 3.0)
