"""Splits by hashed ids, leakage between them, and held-out documents."""

from __future__ import annotations

from collections import Counter

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.leakage import find_leaks, normalise, tokens, without_leaks
from stm_training.data.records import Collection, Pair, Passage
from stm_training.data.sample import sample_passages, split_documents, synthetic_collection
from stm_training.data.splits import halves, hash_split, split_collection

FRACTIONS = {"train": 0.7, "dev": 0.2, "test": 0.1}


def many(count: int) -> Collection:
    corpus = {"d": Passage("d", "text")}
    queries = {f"q{n}": f"query {n}" for n in range(count)}
    return Collection("set", corpus, queries, {query_id: {"d": 1} for query_id in queries})


def test_the_shares_are_those_asked_for() -> None:
    counts = Counter(hash_split(f"q{n}", seed=0, fractions=FRACTIONS) for n in range(10_000))
    assert {name: round(count / 10_000, 1) for name, count in counts.items()} == FRACTIONS


def test_a_split_never_moves_between_versions() -> None:
    found = [hash_split(str(n), seed=13, fractions=FRACTIONS) for n in range(6)]
    assert found == ["train", "test", "train", "train", "dev", "train"]


def test_a_query_keeps_its_side_whatever_other_queries_there_are() -> None:
    small, large = (split_collection(many(n), seed=1) for n in (50, 500))
    for name, part in small.items():
        assert set(part.queries) <= set(large[name].queries)


def test_another_seed_gives_another_split() -> None:
    first, second = halves(many(100), 0), halves(many(100), 1)
    assert set(first[0].queries) != set(second[0].queries)


def test_halves_share_nothing_and_lose_nothing() -> None:
    dev, test = halves(many(100), 0)
    assert (dev.name, test.name) == ("set/dev", "set/test")
    assert not set(dev.queries) & set(test.queries)
    assert len(dev.queries) + len(test.queries) == 100
    assert set(dev.qrels) == set(dev.queries)


def test_an_empty_half_is_an_error() -> None:
    with pytest.raises(DataError, match="half of 'set' \\(1 queries"):
        halves(many(1), 0)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_fractions_must_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must sum to 1"):
        hash_split("q", seed=0, fractions=fractions)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is asthma?", "  what IS asthma "),
        ("ﬁbrosis – lung", "Fibrosis, lung!"),
        ("cafe\u0301", "CAFÉ"),
        ("Straße", "STRASSE"),
    ],
)
def test_case_punctuation_and_encoding_do_not_hide_a_duplicate(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


def test_texts_of_punctuation_alone_are_not_all_the_same() -> None:
    assert normalise("???") != normalise("!!!")


def test_exact_and_normalised_leaks_are_told_apart() -> None:
    found = find_leaks(["a b", "C?", "D"], {"1": "a b", "2": "c", "3": "e"})
    assert [(leak.held_out_id, leak.train, leak.exact) for leak in found] == [
        ("1", "a b", True),
        ("2", "C?", False),
    ]
    assert find_leaks(["something else"], {"1": "a b"}) == []


def test_pairs_whose_query_is_held_out_can_be_parted() -> None:
    kept, dropped = without_leaks([Pair("Asthma?", "p"), Pair("Flu?", "p")], ["asthma"])
    assert ([p.query for p in kept], [p.query for p in dropped]) == (["Flu?"], ["Asthma?"])


def test_tokens_are_words_and_single_characters_of_unspaced_scripts() -> None:
    assert tokens("The red cat, it's RED!") == ["the", "red", "cat", "it", "s", "red"]
    assert tokens("Straße 糖尿病") == ["strasse", "糖", "尿", "病"]
    assert tokens("?!") == tokens("") == []


def test_pieces_of_one_document_are_held_out_together() -> None:
    passages = [Passage(f"d{d}#{n}", "t", parent_id=f"d{d}") for d in range(60) for n in range(3)]
    parts = split_documents(passages, seed=0, fractions={"train": 0.5, "dev": 0.5})
    sides = {name: {p.parent_id for p in part} for name, part in parts.items()}
    assert not sides["train"] & sides["dev"]
    assert sum(len(part) for part in parts.values()) == 180
    assert all(sides.values())


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    passages = [Passage(str(n), "t") for n in range(50)]
    first = sample_passages(passages, 10, seed=3)
    assert first == sample_passages(passages, 10, seed=3)
    assert first != sample_passages(passages, 10, seed=4)
    assert [int(p.id) for p in first] == sorted(int(p.id) for p in first)
    assert sample_passages(passages, 99, seed=0) == passages


def test_a_synthetic_collection_judges_only_held_out_documents_over_the_whole_corpus() -> None:
    corpus = [Passage("a", "x"), Passage("b", "y")]
    pairs = [
        Pair("qa", "x", positive_id="a", kind="question"),
        Pair("qb", "y", positive_id="b", kind="claim"),
    ]
    made = synthetic_collection("synthetic/dev", corpus, pairs, [corpus[1]])
    assert (set(made.corpus), made.queries, made.qrels) == (
        {"a", "b"},
        {"b/claim": "qb"},
        {"b/claim": {"b": 1}},
    )
    with pytest.raises(DataError, match="No synthetic query"):
        synthetic_collection("synthetic/dev", corpus, pairs[:1], [corpus[1]])
