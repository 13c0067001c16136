"""Leaks between training and test sets: what counts, what is an error, what is only shown."""

from __future__ import annotations

import json

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Collection, Pair, Passage
from stm_training.leakage.report import Overlap, refuse_leaks
from stm_training.leakage.search import find_overlaps
from stm_training.leakage.sets import TextSet, collection_as_set, pairs_as_set

LONG = (
    "Asthma is a disease of the airways in which the small muscles around them tighten, so that air "
    "passes with a whistle and breathing out takes longer than breathing in. "
) * 3
TEST = TextSet(
    "lungs/test",
    {
        "q1": "What is asthma?",
        "q2": "Does smoke make asthma of small children worse?",
        "q3": "How is COPD treated?",
        "q4": "cough at night",
    },
    {"d1": LONG, "d2": "Gout is painful.", "d3": "Nobody trained on this sentence about the spleen."},
)


def one(report_overlaps: tuple[Overlap, ...], train_role: str, test_role: str) -> Overlap:
    (found,) = [o for o in report_overlaps if (o.train_role, o.test_role) == (train_role, test_role)]
    return found


def training() -> TextSet:
    return pairs_as_set(
        "pairs.jsonl",
        [
            Pair("What is asthma?", "Gout is painful.", negatives=("cough at night",)),
            Pair("how is  copd TREATED", LONG.replace("whistle", "squeak", 1)),
            Pair("Does smoke make the asthma of small children worse?", "Something else."),
            Pair("Which bird sings at night?", "The nightingale."),
        ],
    )


def test_each_test_text_counts_once_as_the_closest_that_it_is() -> None:
    report = find_overlaps([training()], [TEST])
    queries = one(report.overlaps, "query", "query")
    assert (queries.exact, queries.normalised, queries.near) == (1, 1, 1)
    assert queries.test_ids == ("q1", "q3", "q2")
    assert (queries.train_texts, queries.test_texts, queries.train_hits) == (4, 4, 3)
    documents = one(report.overlaps, "document", "document")
    assert (documents.exact, documents.normalised, documents.near) == (1, 0, 1)
    assert documents.test_ids == ("d2", "d1")
    assert documents.train_texts == 5
    crossed = one(report.overlaps, "document", "query")
    assert (crossed.exact, crossed.test_ids) == (1, ("q4",))
    assert one(report.overlaps, "query", "document").test_ids == ()


def test_examples_show_both_texts_where_they_are_and_how_alike() -> None:
    report = find_overlaps([training()], [TEST])
    kinds = {example.kind: example for example in one(report.overlaps, "query", "query").examples}
    assert (kinds["normalised"].test, kinds["normalised"].train) == (
        "How is COPD treated?",
        "how is  copd TREATED",
    )
    assert kinds["normalised"].train_id == "row 2"
    assert kinds["near"].jaccard == pytest.approx(8 / 9, abs=1e-4)
    (exact, near) = one(report.overlaps, "document", "document").examples
    assert exact.jaccard == 1
    assert near.test_id == "d1"
    assert 0.8 <= near.jaccard < 1


def test_equal_test_queries_are_an_error_and_near_ones_are_not() -> None:
    report = find_overlaps([training()], [TEST])
    assert [(o.train, o.test) for o in report.leaks] == [("pairs.jsonl", "lungs/test")]
    assert report.leaked_queries("lungs/test") == {"q1", "q3"}
    with pytest.raises(
        DataError, match=r"2 of 4 queries of lungs/test are queries of pairs\.jsonl"
    ) as caught:
        refuse_leaks(report)
    assert "q3: 'How is COPD treated?', row 2, as 'how is  copd TREATED'" in str(caught.value)
    without = TextSet("lungs/test", {"q2": TEST.queries["q2"]}, {})
    report = find_overlaps([training()], [without])
    assert one(report.overlaps, "query", "query").near == 1
    refuse_leaks(report)


def test_a_leak_that_is_allowed_by_name_is_still_counted() -> None:
    report = find_overlaps([training()], [TEST], allowed=["lungs/test"])
    refuse_leaks(report)
    assert one(report.overlaps, "query", "query").is_leak
    (row, *_) = [row for row in report.figures()["overlaps"] if row["leak"]]
    assert row["allowed"] is True
    other = TextSet("other/test", {"x": "What is asthma"}, {})
    with pytest.raises(DataError, match="other/test"):
        refuse_leaks(find_overlaps([training()], [TEST, other], allowed=["lungs/test"]))


def test_a_name_that_no_test_set_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lung/test.*lungs/test"):
        find_overlaps([training()], [TEST], allowed=["lung/test"])


def test_two_sets_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="Two sets are called 'lungs/test'"):
        find_overlaps([training()], [TEST, TEST])


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        find_overlaps([training()], [TEST], threshold=threshold)


def test_every_pair_of_sets_is_compared() -> None:
    second = TextSet("gout/test", {"g": "which bird SINGS at night"}, {})
    clean = pairs_as_set("clean.jsonl", [Pair("Is water wet?", "It is.")])
    report = find_overlaps([training(), clean], [TEST, second], documents=False)
    counts = {(o.train, o.test): (o.exact, o.normalised) for o in report.overlaps}
    assert counts == {
        ("pairs.jsonl", "lungs/test"): (1, 1),
        ("pairs.jsonl", "gout/test"): (0, 1),
        ("clean.jsonl", "lungs/test"): (0, 0),
        ("clean.jsonl", "gout/test"): (0, 0),
    }


def test_figures_are_json_with_counts_and_examples() -> None:
    figures = json.loads(json.dumps(find_overlaps([training()], [TEST], examples=2).figures()))
    assert figures["threshold"] == 0.8
    assert figures["leaks"] == 1
    assert len(figures["overlaps"]) == 4
    assert {"train", "test", "exact", "normalised", "near", "examples", "leak"} <= figures["overlaps"][
        0
    ].keys()
    assert all(len(row["examples"]) <= 2 for row in figures["overlaps"])


def test_training_on_a_collection_means_its_queries_and_the_documents_that_answer_them() -> None:
    collection = Collection(
        "lungs",
        {"a": Passage("a", "body", title="Title"), "b": Passage("b", "not relevant")},
        {"q": "a query"},
        {"q": {"a": 1, "b": 0}},
    )
    assert collection_as_set(collection, relevant_only=True).documents == {"a": "Title body"}
    assert set(collection_as_set(collection).documents) == {"a", "b"}
