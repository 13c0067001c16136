"""All filters together: the order, the switches, the books, and what stops them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Pair, Passage
from stm_training.filtering.result import FilterResult
from stm_training.filtering.run import filter_pairs
from stm_training.filtering.settings import FilterSection

MITES = Passage("mites", "House dust mites trigger asthma in children; wash the bedding hot every week.")
IRON = Passage("iron", "Iron tablets are taken for three months when the blood of a patient lacks iron.")
GOUT = Passage("gout", "Attacks of gout begin at night in the big toe, where uric acid forms crystals.")
CORPUS = [MITES, IRON, GOUT, *(Passage(f"d{n}", f"Article {n} on knees, number {n}.") for n in range(30))]
NEGATIVE = "Birch pollen is counted every day in spring by traps on the roofs of large towns."
ALL_OFF: dict[str, Any] = {
    name: {"enabled": False} for name in ("text", "duplicates", "language", "negatives", "round_trip")
}


def pair(query: str, passage: Passage, source: str = "llm", **more: Any) -> Pair:
    return Pair(query, passage.content, positive_id=passage.id, source=source, **more)


GOOD = [
    pair("Should bedding be washed hot against mites?", MITES, negatives=(NEGATIVE,)),
    pair("How long must a patient take iron tablets?", IRON, negatives=(NEGATIVE,)),
    pair("Why does gout hurt in the toe at night?", GOUT, negatives=(NEGATIVE,)),
]
BAD = {
    "held_out": pair("Which toe does gout begin in?", GOUT),
    "refusal": pair("I'm sorry, I cannot write a question.", GOUT),
    "refers_to_passage": pair("What does this passage say about iron?", IRON),
    "copied": pair("the blood of a patient lacks iron", IRON),
    "too_short": pair("iron", IRON),
    "near_duplicate": pair("How long must a patient take the iron tablets?", IRON),
    "language": pair("Warum schmerzt die Gicht nachts so sehr im großen Zeh?", GOUT),
    "round_trip": pair("Which knees are on in article 7?", MITES),
}
HELD_OUT = ["Which toe does gout begin in"]


def run(pairs: Sequence[Pair], settings: dict[str, Any] | None = None, **more: Any) -> FilterResult:
    return filter_pairs(pairs, CORPUS, FilterSection.model_validate(settings or {}), **more)


def counts(result: FilterResult) -> dict[str, int]:
    return {name: dropped.count for name, dropped in result.dropped.items()}


def test_each_filter_drops_its_own_and_the_good_pairs_stay() -> None:
    result = run([*GOOD, *BAD.values()], {"round_trip": {"k": 3}}, held_out=HELD_OUT)
    assert counts(result) == dict.fromkeys(BAD, 1)
    assert result.pairs == GOOD
    assert result.counts["pairs_in"] == len(GOOD) + len(BAD)
    assert result.counts["pairs"] == len(GOOD)
    assert result.counts["negatives_in"] == result.counts["negatives"] == 3
    assert result.dropped["near_duplicate"].examples == (
        (
            "iron",
            "How long must a patient take the iron tablets? [like: How long must a patient take iron tablets?]",
        ),
    )
    assert set(result.seconds) >= {"held_out", "text", "near_duplicate", "language", "round_trip"}


SECTION_OF = {
    "held_out": "duplicates",
    "near_duplicate": "duplicates",
    "language": "language",
    "round_trip": "round_trip",
    **dict.fromkeys(("refusal", "refers_to_passage", "copied", "too_short"), "text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_filter_that_is_switched_off_drops_nothing(name: str) -> None:
    only = ALL_OFF | {SECTION_OF[name]: {"enabled": True} | ({"k": 3} if name == "round_trip" else {})}
    assert counts(run([*GOOD, BAD[name]], only, held_out=HELD_OUT)) == {name: 1}
    assert run([*GOOD, BAD[name]], ALL_OFF, held_out=HELD_OUT).pairs == [*GOOD, BAD[name]]


def test_what_people_wrote_loses_only_held_out_queries_and_negatives() -> None:
    written = [
        Pair(p.query, p.positive, (p.positive,), positive_id=p.positive_id, source="labelled")
        for p in BAD.values()
    ]
    result = run(written, {"round_trip": {"k": 1}}, held_out=HELD_OUT)
    assert counts(result) == {"held_out": 1, "negative_is_positive": len(BAD) - 1}
    assert [p.query for p in result.pairs] == [p.query for name, p in BAD.items() if name != "held_out"]
    assert all(p.negatives == () for p in result.pairs)


def test_a_synthetic_twin_of_a_written_query_goes_even_if_it_comes_first() -> None:
    twin = pair("Should the bedding be washed hot against mites?", MITES)
    written = pair("Should bedding be washed hot against mites?", MITES, source="labelled")
    assert run([twin, written]).pairs == [written]


def test_one_query_with_several_positives_is_no_duplicate_of_itself() -> None:
    twice = [
        pair("What hurts at night?", GOUT, query_id="q1"),
        pair("What hurts at night?", MITES, query_id="q1"),
    ]
    other = pair("What hurts at night?", IRON, query_id="q2")
    result = run([*twice, other], {"round_trip": {"enabled": False}})
    assert result.pairs == twice


def test_extracted_queries_may_stand_in_their_document() -> None:
    extracted = pair("the blood of a patient lacks iron", IRON, source="extractive")
    assert run([extracted], {"language": {"enabled": False}}).pairs == [extracted]


def test_fragments_are_dropped_where_asked() -> None:
    caption = Passage("caption", "Figure 2. Knees.")
    result = filter_pairs(
        [Pair("What do the knees look like?", caption.text, positive_id="caption")],
        [*CORPUS, caption],
        FilterSection.model_validate({"text": {"shortest_positive": 8}}),
    )
    assert counts(result) == {"positive_too_short": 1}


def test_pairs_from_outside_the_corpus_are_kept_and_counted() -> None:
    stranger = Pair("What is a stranger to this corpus?", "A text from another corpus.", positive_id="x")
    result = run([stranger])
    assert result.pairs == [stranger]
    assert result.counts["round_trip_unchecked"] == 1
    assert "not in the corpus" in result.notes[0]


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    words = ("mites", "iron", "gout", "toe", "bedding", "pollen")
    return np.array(
        [[0.1] + [text.lower().count(word) for word in words] for text in texts], dtype=np.float32
    )


def test_a_model_brings_the_margin_and_the_dense_round_trip() -> None:
    close = "Bedding with mites should be washed; mites love bedding and mites again, the book says."
    pairs = [pair(GOOD[0].query, MITES, negatives=(close, NEGATIVE)), pair("iron and gout", MITES)]
    said: list[tuple[str, int, int]] = []
    result = run(
        pairs,
        {"round_trip": {"k": 2}},
        encode_query=encode,
        encode_document=encode,
        progress=lambda *step: said.append(step),
    )
    assert counts(result) == {"negative_too_close": 1, "round_trip": 1}
    assert result.pairs[0].negatives == (NEGATIVE,)
    assert {what for what, _, _ in said} >= {"text", "language", "comparing negatives", "dense search"}
    assert all(0 < done <= total for _, done, total in said)


def test_a_reranker_that_is_handed_in_is_used() -> None:
    def scorer(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        return np.array(["iron" in text.lower() for _, text in pairs], dtype=np.float32)

    both = [pair("Iron or gout in the toe?", IRON), pair("Gout, iron or the toe?", GOUT)]
    result = run(both, ALL_OFF | {"reranker": {"enabled": True}}, reranker=scorer)
    assert result.pairs == both[:1]
    assert counts(result) == {"reranker": 1}


def test_the_corpus_is_encoded_once_for_round_trip_and_reranker_and_not_at_all_for_nothing() -> None:
    encoded: list[str] = []

    def encode_document(texts: Sequence[str]) -> NDArray[np.float32]:
        encoded.extend(texts)
        return encode(texts)

    settings = ALL_OFF | {"round_trip": {"k": 2}, "reranker": {"enabled": True, "candidates": 9}}
    more: dict[str, Any] = {"encode_query": encode, "encode_document": encode_document}
    more["reranker"] = lambda pairs: np.zeros(len(pairs), dtype=np.float32)
    assert run([*GOOD, BAD["round_trip"]], settings, **more).pairs == GOOD
    assert sorted(encoded) == sorted(passage.content for passage in CORPUS)
    encoded.clear()
    run([pair("A question that a person wrote", IRON, source="labelled")], settings, **more)
    assert encoded == []


def test_a_filter_that_drops_nearly_everything_is_an_error_with_examples() -> None:
    senseless = [pair(f"Which knees are on in article {n} alone?", MITES) for n in range(30)]
    with pytest.raises(DataError, match=r"(?s)'round_trip' dropped 30 of 30 pairs.*article 0 alone"):
        run(senseless, {"duplicates": {"enabled": False}, "round_trip": {"k": 1}})
    allowed = {"duplicates": {"enabled": False}, "round_trip": {"k": 1}, "most_dropped": 1}
    assert run(senseless, allowed).pairs == []


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"round_trip": {"retriever": "both"}}, {}, "encode_query"),
        ({"reranker": {"enabled": True}}, {}, "has no model"),
        ({}, {"encode_query": encode}, "belong together"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(
    settings: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(GOOD, settings, **more, progress=lambda *_: pytest.fail("nothing should have begun"))


def test_without_passages_the_round_trip_cannot_run() -> None:
    with pytest.raises(ConfigError, match="among the passages"):
        filter_pairs(GOOD, [])
    assert (
        filter_pairs(GOOD, [], FilterSection.model_validate({"round_trip": {"enabled": False}})).pairs == GOOD
    )


def test_no_pairs_are_no_error() -> None:
    assert run([]).pairs == []


@pytest.mark.parametrize(
    "settings",
    [{"tezt": {}}, {"text": {"shortest": 9, "longest": 3}}, {"round_trip": {"k": 0}}, {"most_dropped": 2}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FilterSection.model_validate(settings)


def test_every_setting_is_described() -> None:
    sections: list[Any] = [FilterSection]
    sections.extend(type(getattr(FilterSection(), name)) for name in FilterSection.model_fields)
    for section in sections:
        for name, field in getattr(section, "model_fields", {}).items():
            default = field.default
            assert field.description or type(default) in sections, f"{section.__name__}.{name}"
