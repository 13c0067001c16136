"""Near-duplicates: what is found is exactly what comparing every pair would find."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_training.filtering.near_duplicates import NearDuplicates, feature_counts, features

WORDS = [f"w{n}" for n in range(12)]


def slow_find(text: str, earlier: list[str], threshold: float) -> str | None:
    mine = features(text)
    for other in earlier:
        theirs = features(other)
        if len(mine & theirs) / len(mine | theirs) >= threshold - 1e-12:
            return other
    return None


@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=25),
    st.sampled_from([0.3, 0.5, 2 / 3, 0.75, 0.8, 0.9, 1.0]),
    st.booleans(),
)
def test_the_index_finds_what_comparing_all_would_find(
    texts: list[str], threshold: float, with_frequencies: bool
) -> None:
    frequency = feature_counts(texts) if with_frequencies else Counter[str]()
    index = NearDuplicates(threshold, frequency)
    for place, text in enumerate(texts):
        assert index.find(text) == slow_find(text, texts[:place], threshold)
        index.add(text)


@pytest.mark.parametrize(
    ("left", "right", "alike"),
    [
        ("What helps against hay fever?", "what HELPS against hay-fever", True),
        ("What helps against hay fever in spring?", "What helps against hay fever?", False),  # 5 of 7
        ("Does aspirin thin the blood of adults?", "Does aspirin thin the blood of all adults?", True),
        ("ダニは喘息の原因ですか", "ダニは喘息の原因ですか？", True),
        ("猫咬狗", "狗咬猫", False),  # the same characters, another meaning
        ("?", "!", False),
    ],
)
def test_examples_at_four_fifths(left: str, right: str, alike: bool) -> None:
    index = NearDuplicates(0.8, Counter())
    index.add(left)
    assert (index.find(right) is not None) == alike


def test_the_border_itself_counts_as_alike() -> None:
    index = NearDuplicates(0.8, Counter())
    index.add("a1 b1 c1 d1")
    assert index.find("a1 b1 c1 d1 e1") == "a1 b1 c1 d1"  # 4 of 5, exactly 0.8


def test_many_queries_with_common_words_take_few_comparisons() -> None:
    drawn = random.Random(0)
    texts = [
        f"what is the effect of drug{drawn.randrange(10**6)} on organ{drawn.randrange(10**6)}"
        for _ in range(3000)
    ]
    index = NearDuplicates(0.8, feature_counts(texts))
    for text in texts:
        index.add(text)
    common = feature_counts(texts)["what"]
    assert common == len(texts)
    assert max(len(places) for places in index._postings.values()) < 10, "common words must not be indexed"
