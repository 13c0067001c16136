"""Answers as models really give them."""

from __future__ import annotations

import pytest

from stm_training.synthesize.parsing import UnusableAnswer, parse_document, parse_queries


@pytest.mark.parametrize(
    ("answer", "queries"),
    [
        ('{"queries": ["a b", "c d"]}', ["a b", "c d"]),
        ('```json\n{"queries": ["a b"]}\n```', ["a b"]),
        ('Sure! Here it is:\n```\n["a b"]\n```\nHope it helps.', ["a b"]),
        ('Here you go: {"queries": ["a b"]} Anything else?', ["a b"]),
        ('<think>{"queries": ["no"]}</think>{"queries": ["yes"]}', ["yes"]),
        ('{"question": "a b"}', ["a b"]),
        ('{"queries": [{"text": "a b"}, {"query": "c"}]}', ["a b", "c"]),
        ('{"queries": "a b"}', ["a b"]),
        ('{"queries": ["line\none"]}', ["line one"]),
        ("1. a b\n2) c d", ["a b", "c d"]),
        ("Here are the questions:\n- a b\n- c d", ["a b", "c d"]),
        ('"a b?"', ["a b?"]),
        ("What does [3H]thymidine measure?", ["What does [3H]thymidine measure?"]),
    ],
)
def test_usable_answers_are_read(answer: str, queries: list[str]) -> None:
    assert parse_queries(answer, limit=5) == queries


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("<think>never stops", "empty"),
        ('{"queries": ["a b", "c', "cut off"),
        ('{"queries": [', "cut off"),
        ('{"answer": 42}', "another form"),
        ('{"queries": []}', "no query"),
        ('{"queries": ["", " "]}', "no query"),
        ('{"queries": [1]}', "not a string"),
        ('{"queries": {"a": "b"}}', "another form"),
        ("Here they are:", "no query"),
    ],
)
def test_unusable_answers_say_why(answer: str, reason: str) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        parse_queries(answer, limit=5)
    assert reason in caught.value.reason


def test_no_more_queries_are_taken_than_were_asked_for() -> None:
    assert parse_queries('["a", "b", "c"]', limit=2) == ["a", "b"]


@pytest.mark.parametrize(
    "answer",
    [
        "Pollen is measured.\n\nDaily.",
        "```\nPollen is measured.\n\nDaily.\n```",
        "Here is a hard negative document:\n\nPollen is measured.\n\nDaily.",
        "**Document:** Pollen is measured.\n\nDaily.",
        '"Pollen is measured.\n\nDaily."',
        '{"document": "Pollen is measured.\\n\\nDaily."}',
        "<think>hm</think>\nPollen is measured.\n\nDaily.",
    ],
)
def test_a_document_comes_without_what_surrounds_it(answer: str) -> None:
    assert parse_document(answer) == "Pollen is measured.\n\nDaily."


def test_a_document_may_begin_with_a_bracket() -> None:
    assert parse_document("[Purpose] To measure pollen.") == "[Purpose] To measure pollen."


@pytest.mark.parametrize("answer", ["", '{"document": "cut', '{"score": 1}', "[1, 2]"])
def test_an_answer_without_a_document_is_unusable(answer: str) -> None:
    with pytest.raises(UnusableAnswer):
        parse_document(answer)
