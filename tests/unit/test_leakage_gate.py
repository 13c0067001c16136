"""Before a training: leaks stop it, are dropped, or are allowed by name; whatever file they come from."""

from __future__ import annotations

import json

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Pair
from stm_training.leakage.gate import examine
from stm_training.leakage.sets import TextSet
from stm_training.report.summary import LeakageSummary

PASSAGE = (
    "An inhaler with a short acting drug opens the airways within minutes, and its effect lasts for hours."
)
TESTS = [
    TextSet("health/test", {"q1": "What is gout?", "q2": "Who needs iron tablets?"}, {"d1": PASSAGE}),
    TextSet("guard/test", {"g1": "Which bird sings at night?"}, {"d2": "The nightingale."}),
]
TRAINING = {
    "pairs": [
        Pair("what is GOUT", PASSAGE.replace("hours", "long")),
        Pair("What is gout?", "A disease of the joints."),
        Pair("who needs the iron tablets", "Some people."),
    ],
    "expert file": [Pair("Which bird sings at night", "The nightingale."), Pair("Is water wet?", "Yes.")],
}


def test_a_leak_stops_the_training_wherever_it_comes_from() -> None:
    with pytest.raises(DataError, match="on_leak: drop") as caught:
        examine(TRAINING, TESTS, drop=False)
    assert "1 of 2 queries of health/test are queries of pairs" in str(caught.value)
    assert "1 of 1 queries of guard/test are queries of expert file" in str(caught.value)


def test_dropping_takes_out_the_leaking_pairs_and_no_others() -> None:
    gate = examine(TRAINING, TESTS, drop=True)
    assert [pair.query for pair in gate.keep(TRAINING["pairs"])] == ["who needs the iron tablets"]
    assert [pair.query for pair in gate.keep(TRAINING["expert file"])] == ["Is water wet?"]
    assert gate.dropped == 3
    clean = {name: gate.keep(pairs) for name, pairs in TRAINING.items()}
    assert examine(clean, TESTS, drop=False).dropped == 0


def test_what_is_allowed_by_name_passes() -> None:
    gate = examine(TRAINING, TESTS, drop=True, allowed=["guard/test"])
    assert gate.keep(TRAINING["expert file"]) == TRAINING["expert file"]
    assert gate.dropped == 2
    examine(TRAINING, TESTS, drop=False, allowed=["guard/test", "health/test"])
    with pytest.raises(ConfigError, match="guard"):
        examine(TRAINING, TESTS, drop=True, allowed=["guard"])


def test_the_summary_is_what_the_report_takes() -> None:
    summary = json.loads(json.dumps(examine(TRAINING, TESTS, drop=True).summary()))
    found = LeakageSummary.model_validate(summary)
    assert (found.train_queries, found.checked_against) == (5, 3)
    assert (found.exact, found.normalised, found.dropped) == (1, 1, 3)
    assert found.near == 1
    assert found.near_documents == 2, "the passage with one word changed, and the nightingale"
    assert {example.test for example in found.examples} == {"Who needs iron tablets?", PASSAGE}
    only = examine(TRAINING, TESTS, drop=True, documents=False).summary()
    assert only["near_documents"] is None
