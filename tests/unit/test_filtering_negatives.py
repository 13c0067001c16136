"""Negatives that are too close to a positive go; their pairs stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_training.data.records import Pair
from stm_training.filtering.negatives import drop_by_margin, drop_by_text, highest_allowed, known_positives
from stm_training.filtering.result import silent
from stm_training.filtering.settings import NegativeFilterSection
from stm_training.synthesize.filters import DropLog

POSITIVE = "Washing the bedding at sixty degrees every week kills the mites that live in it."
OTHER = "Pollen counts are highest in May, when birches and grasses bloom together."


def by_text(*pairs: Pair, **settings: float) -> tuple[list[Pair], dict[str, int]]:
    drops = DropLog()
    left = drop_by_text(pairs, NegativeFilterSection(**settings), drops, known_positives(pairs))
    return left, {name: dropped.count for name, dropped in drops.by_filter.items()}


@pytest.mark.parametrize(
    ("negative", "filter_name"),
    [
        (POSITIVE, "negative_is_positive"),
        (POSITIVE.upper().replace(" ", "  ") + "!", "negative_is_positive"),
        (POSITIVE + " Indeed.", "negative_like_positive"),
        ("I'm sorry, I cannot write that.", "negative_refusal"),
        ("...", "negative_empty"),
        (OTHER, None),
        ("Birch pollen.", None),
    ],
)
def test_texts_that_are_no_negatives(negative: str, filter_name: str | None) -> None:
    (left,), counts = by_text(Pair("Do hot washes help?", POSITIVE, (negative, OTHER + " Really so.")))
    assert counts == ({} if filter_name is None else {filter_name: 1})
    assert left.positive == POSITIVE
    assert left.negatives[-1] == OTHER + " Really so.", "the other negative stays"


def test_another_pairs_positive_for_the_same_query_is_no_negative() -> None:
    first = Pair("What helps?", POSITIVE, (OTHER,))
    second = Pair("what helps", OTHER)
    left, counts = by_text(first, second)
    assert [pair.negatives for pair in left] == [(), ()]
    assert counts == {"negative_is_positive": 1}


def test_a_negative_counts_once_in_its_pair() -> None:
    (left,), counts = by_text(Pair("q one", POSITIVE, (OTHER, OTHER.upper())))
    assert left.negatives == (OTHER,)
    assert counts == {"negative_repeated": 1}


def test_short_negatives_go_where_asked() -> None:
    (left,), counts = by_text(Pair("q one", POSITIVE, ("Birch pollen.",)), shortest=3)
    assert left.negatives == ()
    assert counts == {"negative_too_short": 1}


@pytest.mark.parametrize(
    ("margin", "positive", "limit"),
    [
        ("relative", 0.8, 0.76),
        ("relative", -0.2, -0.21),
        ("relative", 0.0, 0.0),
        ("absolute", 0.8, 0.75),
        ("absolute", -0.2, -0.25),
    ],
)
def test_the_limit_lies_below_the_positive_whatever_its_sign(
    margin: str, positive: float, limit: float
) -> None:
    settings = NegativeFilterSection(margin=margin)
    assert highest_allowed(positive, settings) == pytest.approx(limit)


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """The angle that the text names, as a vector of length 3."""
    angles = np.radians([float(text.split()[-1]) for text in texts])
    return 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def by_margin(*pairs: Pair, margin: str) -> tuple[list[Pair], DropLog]:
    drops = DropLog()
    settings = NegativeFilterSection(margin=margin)
    left = drop_by_margin(
        pairs, settings, drops, encode_query=encode, encode_document=encode, progress=silent
    )
    return left, drops


def test_negatives_nearer_than_the_margin_go() -> None:
    # cosines to the query at 0 degrees: positive at 40: .766; limits .728 (relative) and .716 (absolute)
    pair = Pair(
        "query 0", "positive 40", ("near 30", "just under 43", "far 44.1", "away 90"), positive_id="d"
    )
    (left,), drops = by_margin(pair, margin="relative")
    assert left.negatives == ("far 44.1", "away 90")
    assert drops.by_filter["negative_too_close"].count == 2
    assert drops.by_filter["negative_too_close"].examples[0] == ("d", "near 30")
    (stricter,), _ = by_margin(pair, margin="absolute")
    assert np.cos(np.radians(44.1)) > 0.716
    assert stricter.negatives == ("away 90",)


def test_a_positive_of_negative_similarity_keeps_the_margins_meaning() -> None:
    # positive at 100 degrees: -.174, limit -.182: a negative at 100.2 (-.177) is too close, one at 101 is not
    (left,), _ = by_margin(Pair("query 0", "positive 100", ("near 100.2", "far 101")), margin="relative")
    assert left.negatives == ("far 101",)


def test_pairs_without_negatives_are_not_encoded() -> None:
    bare = Pair("no angle here", "nor here")
    assert by_margin(bare, margin="relative")[0] == [bare]
