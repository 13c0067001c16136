"""Prompts from a user's file, from those that we ship, and from a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stm_retriever.errors import ConfigError, DataError, LLMError
from stm_training.data.records import Pair
from stm_training.llm.base import Request
from stm_training.prompting.candidates import STM_TEMPLATE, infer_template, make_prompt, read_candidates
from stm_training.prompting.generic import assign_prompts, generic_prompts, write_generic_prompts
from stm_training.prompting.reflection import CallableLLM
from stm_training.prompting.settings import GepaSection, PromptSearchSection

PAIRS = [Pair(f"query {number}", f"text {number}") for number in range(200)]


@pytest.mark.parametrize(
    ("plain", "template"),
    [
        ("", STM_TEMPLATE),
        ("query: ", "{instruction}\nquery: "),
        ("Instruct: Find passages.\nQuery:", "Instruct: {instruction}\nQuery:"),
        ("Find passages.\nQuery: ", "{instruction}\nQuery: "),
        ("task: search result | query: ", "task: {instruction} | query: "),
        ("Represent this sentence for searching relevant passages: ", STM_TEMPLATE),
    ],
)
def test_new_prompts_keep_the_form_that_the_model_was_trained_with(plain: str, template: str) -> None:
    assert infer_template(plain) == template


def test_lines_of_a_file_become_prompts_and_quoted_lines_are_verbatim(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(
        '# mine\nFind passages.\n\n  Find passages.  \n"query: "\n"Find\\nit: "\n', encoding="utf-8-sig"
    )
    assert read_candidates(file, STM_TEMPLATE) == ["Find passages.\nQuery: ", "query: ", "Find\nit: "]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'ok\n"broken\n', "prompts.txt:2: .*no JSON string"), (b"# none\n", "no prompt"), (b"\xff", "UTF-8")],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_where(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_candidates(file, STM_TEMPLATE)


def test_a_draw_of_shipped_prompts_follows_the_seed_and_grows_without_change() -> None:
    assert generic_prompts(10, seed=1) == generic_prompts(20, seed=1)[:10] != generic_prompts(10, seed=2)
    assert len(set(generic_prompts(40))) == 40
    with pytest.raises(ConfigError, match="400 generic prompts are asked for, and 40 are shipped"):
        generic_prompts(400)


def test_each_query_gets_one_prompt_that_depends_on_the_seed_and_its_text_alone() -> None:
    prompts = [make_prompt(text, STM_TEMPLATE) for text in generic_prompts(10)]
    first = assign_prompts(PAIRS, prompts, seed=3)
    assert assign_prompts(PAIRS[::-1], prompts, seed=3) == first[::-1]
    assert assign_prompts(PAIRS[:5], prompts, seed=3) == first[:5]
    assert assign_prompts(PAIRS, prompts, seed=4) != first
    counts = [sum(pair.prompt == prompt for pair in first) for prompt in prompts]
    assert sum(counts) == 200
    assert min(counts) >= 8  # 20 are expected of each
    twins = assign_prompts([Pair("same", "a"), Pair("same", "b")], prompts)
    assert twins[0].prompt == twins[1].prompt


def test_a_pair_with_a_prompt_of_its_own_keeps_it_unless_told_otherwise() -> None:
    own = Pair("query", "text", prompt="")
    assert assign_prompts([own], ["other: "])[0].prompt == ""
    assert assign_prompts([own], ["other: "], overwrite=True)[0].prompt == "other: "
    with pytest.raises(ConfigError, match="no prompts to draw from"):
        assign_prompts([own], [])


def test_a_language_model_writes_generic_prompts_and_bad_ones_are_asked_for_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(text: str) -> str:
        asked.append(text)
        number = len(asked)
        texts = [f"Find passages of kind {letter * number}." for letter in "abcdefghi"]
        return json.dumps({"prompts": [*texts, "Raise the nDCG.", "find passages of kind A!"]})

    journal = tmp_path / "journal.jsonl"
    written = write_generic_prompts(CallableLLM(answer), 12, journal=journal)
    assert len(written) == len(set(written)) == 12
    assert not any("nDCG" in text for text in written)
    assert len(asked) == 2
    assert "Write 3 such" in asked[1]
    assert written[0] in asked[1]
    assert write_generic_prompts(CallableLLM(answer), 12, journal=journal) == written
    assert len(asked) == 2, "the journal answers"


def test_a_language_model_that_repeats_itself_is_an_error_and_no_endless_loop() -> None:
    requests: list[Request] = []

    def answer(text: str) -> str:
        requests.append(text)  # type: ignore[arg-type]
        return '{"prompts": ["Find the text."]}'

    with pytest.raises(LLMError, match="wrote 1 of 5 usable generic prompts"):
        write_generic_prompts(CallableLLM(answer), 5)
    assert len(requests) == 3


def test_settings_refuse_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        PromptSearchSection(template="Query: ")
    with pytest.raises(ValidationError, match="raise the budget or lower max_queries"):
        PromptSearchSection(gepa=GepaSection(metric_calls=50, max_queries=100))
    assert not PromptSearchSection(train_prompts=10).is_search
    assert PromptSearchSection(random=1).is_search
