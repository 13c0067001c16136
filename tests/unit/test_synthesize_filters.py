"""What the filters drop, and what they must not."""

from __future__ import annotations

import pytest

from stm_training.data.records import Passage
from stm_training.synthesize.filters import (
    DropLog,
    Limits,
    SeenQueries,
    copies,
    negative_problem,
    query_problem,
)

PASSAGE = Passage(
    "d",
    "House dust mites are a frequent trigger of allergic asthma in children, and washing bedding at sixty "
    "degrees every week lowers the number of mites but not always the number of attacks.",
    "Dust mites",
)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("?!", "empty"),
        ("I'm sorry, but I cannot write a question about it.", "refusal"),
        ("As an AI language model I do not.", "refusal"),
        ("No question can be answered from it.", "refusal"),
        ("N/A", "refusal"),
        ("The document does not contain medical facts.", "refusal"),
        ("What does this passage say about mites?", "refers_to_passage"),
        ("According to the text, what triggers asthma?", "refers_to_passage"),
        ("How many children took part in this study?", "refers_to_passage"),
        ("What did the authors conclude about mites?", "refers_to_passage"),
        ("asthma", "too_short"),
        ("very " * 90 + "long", "too_long"),
        ("frequent trigger of allergic asthma in children", "copied"),
        ("Why: washing bedding at sixty degrees every week lowers the number of mites, really?", "copied"),
        ("Does hot laundry help against mites?", None),
        ("I can't breathe at night, is it asthma?", None),
        ("I can't help with that.", "refusal"),
        ("dust mites asthma bedding", None),
        ("Which studies compared inhalers for children?", None),
        ("ダニは喘息の原因ですか", None),
        ("None of the inhalers helped my child", None),
    ],
)
def test_each_filter_drops_its_own_and_nothing_else(query: str, problem: str | None) -> None:
    assert query_problem(query, PASSAGE, Limits()) == problem


def test_a_copied_run_is_found_whatever_its_case_and_punctuation() -> None:
    assert copies("HOUSE dust: mites are a frequent!", PASSAGE.text, run=10, whole=6)
    assert not copies("House dust mites are rare today", PASSAGE.text, run=10, whole=6)


@pytest.mark.parametrize(
    ("negative", "problem"),
    [
        ("...", "negative_empty"),
        ("I cannot write such a document.", "negative_refusal"),
        ("Pollen is measured daily.", "negative_too_short"),
        (PASSAGE.content + " Indeed.", "negative_like_positive"),
        ("Birch pollen is counted every day in spring by traps on roofs, and forecasts follow.", None),
    ],
)
def test_negatives_have_filters_of_their_own(negative: str, problem: str | None) -> None:
    assert negative_problem(negative, PASSAGE, Limits()) == problem


def test_a_query_counts_once_and_held_out_ones_never() -> None:
    seen = SeenQueries(held_out=["What is flu?"])
    assert [seen.problem(q) for q in ("Asthma signs?", "asthma SIGNS", "what is FLU", "new one")] == [
        None,
        "duplicate",
        "held_out",
        None,
    ]


def test_counts_are_whole_while_examples_are_few() -> None:
    log = DropLog()
    for n in range(20):
        log.add("copied", f"d{n}", "text")
    assert log.by_filter["copied"].count == 20
    assert log.by_filter["copied"].examples[0] == ("d0", "text")
    assert len(log.by_filter["copied"].examples) == 5
