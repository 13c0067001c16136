"""Round trips, reranking and candidates: does the source come back?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Pair, Passage
from stm_training.filtering import candidates as module
from stm_training.filtering.candidates import NONE, Sources, bm25_candidates, dense_candidates
from stm_training.filtering.consistency import Retrievers, reranker_first, round_trip
from stm_training.filtering.result import silent

PASSAGES = [
    Passage("mites", "House dust mites trigger asthma; wash the bedding hot."),
    Passage("iron", "Iron tablets are taken for months when the blood lacks iron."),
    Passage("gout", "Gout attacks begin at night in the big toe."),
    Passage("gout-copy", "GOUT attacks begin, at night, in the big toe!"),
    Passage("heart#0", "The heart pumps blood.", parent_id="heart", start=0, end=22),
    Passage("heart#1", "Beta blockers slow the pulse.", parent_id="heart", start=23, end=52),
]
WORDS = [
    "mites",
    "asthma",
    "bedding",
    "iron",
    "tablets",
    "gout",
    "toe",
    "heart",
    "blood",
    "pulse",
    "blockers",
]


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """Counts of known words, and a little of everything so that no vector is zero."""
    rows = [[text.lower().count(word) for word in WORDS] + [0.1] for text in texts]
    return np.array(rows, dtype=np.float32)


def pair(query: str, positive_id: str | None, positive: str | None = None) -> Pair:
    texts = {p.id: p.content for p in PASSAGES}
    return Pair(query, positive or texts[str(positive_id)], positive_id=positive_id)


def retrievers(dense: bool = True) -> Retrievers:
    coder = encode if dense else None
    return Retrievers(PASSAGES, coder, coder, silent)


def test_a_query_whose_source_comes_back_is_kept_and_another_dropped() -> None:
    pairs = [pair("asthma from mites in bedding", "mites"), pair("asthma from mites in bedding", "iron")]
    for dense in (True, False):
        verdicts = round_trip(pairs, Sources(PASSAGES), retrievers(dense), choice="auto", k=1)
        assert verdicts == ["keep", "drop"]


def test_a_larger_k_is_more_lenient() -> None:
    vague = [pair("blood", "iron"), pair("blood", "mites")]
    by_k = {k: round_trip(vague, Sources(PASSAGES), retrievers(), choice="dense", k=k) for k in (1, 3, 6)}
    assert by_k[1] == ["drop", "drop"]
    assert by_k[3] == ["keep", "drop"]
    assert by_k[6] == ["keep", "keep"]


def test_both_and_either_combine_the_retrievers() -> None:
    # "washed" is stemmed to what stands in the passage by BM25, and means nothing to the model here.
    pairs = [pair("washed hot", "mites"), pair("gout", "gout")]
    found = {
        choice: round_trip(pairs, Sources(PASSAGES), retrievers(), choice=choice, k=1)
        for choice in ("bm25", "dense", "both", "either")
    }
    assert found["bm25"] == ["keep", "keep"]
    assert found["dense"][1] == "keep"
    mixed = pair("washed hot", "heart#1")
    assert round_trip([mixed], Sources(PASSAGES), retrievers(), choice="bm25", k=1) == ["drop"]
    for index, (lexical, dense) in enumerate(zip(found["bm25"], found["dense"], strict=True)):
        assert found["both"][index] == ("keep" if lexical == dense == "keep" else "drop")
        assert found["either"][index] == ("keep" if "keep" in (lexical, dense) else "drop")


def test_the_two_combinations_differ_where_the_retrievers_do() -> None:
    def blind(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1.0, float("gout" in text.lower())] for text in texts], dtype=np.float32)

    sight = Retrievers(PASSAGES, blind, blind, silent)
    pairs = [pair("iron tablets after gout", "iron")]
    verdict = {
        c: round_trip(pairs, Sources(PASSAGES), sight, choice=c, k=1)[0]
        for c in ("bm25", "dense", "both", "either")
    }
    assert verdict == {"bm25": "keep", "dense": "drop", "both": "drop", "either": "keep"}


def test_copies_of_the_source_and_pieces_of_its_document_count_as_the_source() -> None:
    sources = Sources(PASSAGES)
    assert sources.of(pair("q", "gout")) == {2, 3}
    assert sources.of(pair("q", "heart#0")) == {4, 5}
    assert sources.of(pair("q", None, "gout attacks begin at night in the big toe")) == {2, 3}
    verdicts = round_trip([pair("pulse blockers", "heart#0")], sources, retrievers(), choice="dense", k=1)
    assert verdicts == ["keep"]


def test_a_positive_that_is_not_in_the_corpus_is_not_judged() -> None:
    stranger = Pair("asthma", "A text from elsewhere.", positive_id="nowhere")
    assert round_trip([stranger], Sources(PASSAGES), retrievers(), choice="auto", k=1) == ["unchecked"]


@pytest.mark.parametrize("choice", ["dense", "both", "either"])
def test_a_model_that_is_asked_for_and_missing_is_an_error(choice: str) -> None:
    with pytest.raises(ConfigError, match="encode_query"):
        retrievers(dense=False).chosen(choice)  # type: ignore[arg-type]


def test_the_reranker_drops_what_it_does_not_put_first() -> None:
    asked: list[tuple[str, str]] = []

    def scorer(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        asked.extend(pairs)
        return np.array([text.lower().count("iron") for _, text in pairs], dtype=np.float32)

    pairs = [pair("blood and iron", "iron"), pair("blood", "heart#0")]
    verdicts = reranker_first(pairs, Sources(PASSAGES), retrievers(), scorer, candidates=2)
    assert verdicts == ["keep", "drop"]
    assert len(asked) == 6, "each source and its two rivals"
    rivals = [text for query, text in asked if query == "blood"][1:]
    assert PASSAGES[5].content not in rivals, "a piece of the source's document is no rival"


def test_a_tie_with_the_best_rival_is_still_first() -> None:
    verdicts = reranker_first(
        [pair("gout", "gout")],
        Sources(PASSAGES),
        retrievers(),
        lambda pairs: np.zeros(len(pairs), dtype=np.float32),
        candidates=3,
    )
    assert verdicts == ["keep"]


def test_scores_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(DataError, match=r"not\s+finite"):
        reranker_first(
            [pair("gout", "gout")],
            Sources(PASSAGES),
            retrievers(),
            lambda pairs: np.full(len(pairs), np.nan, dtype=np.float32),
            candidates=3,
        )


@pytest.mark.parametrize("n", [1, 3, 40, 300])
def test_blocks_find_the_same_as_one_sort(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(module, "_ENCODED_AT_ONCE", 32)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 200)
    drawn = np.random.default_rng(3)
    queries = {f"q{i}": drawn.integers(-3, 4, 4).astype(np.float32) + 0.5 for i in range(13)}
    documents = {f"d{i}": drawn.integers(-3, 4, 4).astype(np.float32) + 0.5 for i in range(230)}
    steps: list[tuple[int, int]] = []
    found = dense_candidates(
        list(queries),
        list(documents),
        lambda texts: np.stack([queries[t] for t in texts]),
        lambda texts: np.stack([documents[t] for t in texts]),
        n=n,
        step=lambda done, total: steps.append((done, total)),
    )
    unit = [v / np.linalg.norm(v) for v in documents.values()]
    for row, query in zip(found, queries.values(), strict=True):
        scores = np.array([vector @ query for vector in unit])
        there = row[row != NONE]
        assert len(there) == min(n, 230)
        assert len(set(there.tolist())) == len(there)
        assert np.allclose(np.sort(scores)[::-1][: len(there)], scores[there], atol=1e-5)
    assert steps[-1] == (243, 243)


def test_equal_scores_come_in_the_order_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.ones((len(texts), 2), dtype=np.float32)

    monkeypatch.setattr(module, "_ENCODED_AT_ONCE", 7)
    assert dense_candidates(["q"], ["d"] * 50, same, same, n=5).tolist() == [[0, 1, 2, 3, 4]]


def test_bm25_candidates_leave_places_empty_where_no_word_is_shared() -> None:
    found = bm25_candidates(["iron tablets", "zebra"], [p.content for p in PASSAGES], n=3)
    assert found[0].tolist() == [1, NONE, NONE]
    assert found[1].tolist() == [NONE] * 3


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vectors_without_a_direction_are_an_error(value: float) -> None:
    with pytest.raises(DataError, match="zero or not finite"):
        dense_candidates(["q"], ["d"], encode, lambda texts: np.full((1, 12), value, dtype=np.float32), n=1)
