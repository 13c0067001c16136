"""Prompt templates are files that a user may change, and mistakes in them are found first."""

from __future__ import annotations

from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.llm.markers import marked_document, marked_task, schema_of_task, task_of_schema
from stm_training.synthesize.hard_negatives import negative_request
from stm_training.synthesize.prompts import load_template, template_names
from stm_training.synthesize.queries import LLM_KINDS, Sampling, query_request


@pytest.mark.parametrize("name", template_names())
def test_every_template_that_ships_passes_its_own_check(name: str) -> None:
    assert load_template(name).name == name


@pytest.mark.parametrize("kind", LLM_KINDS)
def test_a_program_finds_document_and_task_in_every_query_prompt(kind: str) -> None:
    passage = Passage("d", "Braces {count} and </document> stay.\nTask: query/other", "T")
    request = query_request(passage, kind, load_template(f"query_{kind}"), Sampling(per_kind=3))
    prompt = request.messages[0].content
    assert marked_document(prompt) == passage.content
    assert marked_task(prompt) == f"query/{kind}"
    assert request.json_schema is not None
    assert task_of_schema(request.json_schema.name) == f"query/{kind}"
    assert "3 " in prompt.split("</document>")[-1]


def test_the_hard_negative_prompt_carries_the_six_demands_and_what_it_builds_on() -> None:
    request = negative_request(
        Passage("d", "Text."),
        "Why?",
        "question",
        load_template("hard_negative"),
        Sampling(),
        mined_negative="Mined.",
    )
    prompt = request.messages[0].content
    assert marked_task(prompt) == "hard_negative/question"
    for part in ("Why?", "Mined.", "Given a query", "1. Same domain", "2. Not relevant", "3. Moderately"):
        assert part in prompt
    for part in ("4. Realistic", "5. Harder", "6. Return only"):
        assert part in prompt
    assert task_of_schema(schema_of_task("hard_negative/question")) == "hard_negative/question"


def test_a_users_copy_wins_and_the_others_stay(tmp_path: Path) -> None:
    text = load_template("query_claim").text.replace("You help", "Please help")
    (tmp_path / "query_claim.txt").write_text(text)
    assert "Please help" in load_template("query_claim", tmp_path).text
    assert "Please help" not in load_template("query_question", tmp_path).text


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{count}", "two", r"lacks \{count\}"),
        ("{count}", "{cuont}", r"lacks \{count\}, has the unknown \{cuont\}"),
        ("<document>", "<text>", "between the lines <document> and </document>"),
        ("Task: query/question", "Hello", "needs a line 'Task: ...'"),
    ],
)
def test_a_broken_copy_is_refused_with_what_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    (tmp_path / "query_question.txt").write_text(load_template("query_question").text.replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load_template("query_question", tmp_path)


def test_an_unknown_template_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="query_question"):
        load_template("query_riddle")


def test_each_request_has_a_seed_of_its_own_that_comes_again() -> None:
    sampling = Sampling(seed=1)
    seeds = {sampling.request_seed(d, t) for d in ("a", "b") for t in ("query/question", "query/claim")}
    assert len(seeds) == 4
    assert sampling.request_seed("a", "query/claim") == Sampling(seed=1).request_seed("a", "query/claim")
    assert sampling.request_seed("a", "query/claim") != Sampling(seed=2).request_seed("a", "query/claim")
    assert all(0 <= seed < 2**31 for seed in seeds)
