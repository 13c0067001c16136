"""Personas, difficulty and sample queries: drawn per document by the seed, and never silently lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Passage
from stm_training.synthesize.prompts import load_template
from stm_training.synthesize.queries import LLM_KINDS, Sampling, query_request
from stm_training.synthesize.styles import NO_EXAMPLES, PLAIN, Style, read_queries

PASSAGE = Passage("d1", "Gout attacks begin at night.", "Gout")
PERSONAS = ("a nurse on a night shift", "a worried father")


def prompt(kind: str, style: Style, *, document: str = "d1", seed: int = 0) -> str:
    passage = Passage(document, PASSAGE.text)
    request = query_request(passage, kind, load_template(f"query_{kind}"), Sampling(seed=seed), style)
    return request.messages[0].content


@pytest.mark.parametrize("kind", LLM_KINDS)
def test_without_a_style_a_prompt_speaks_of_none(kind: str) -> None:
    text = prompt(kind, PLAIN)
    assert "{style}" not in text
    assert "person would" not in text
    assert "Difficulty" not in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize("kind", LLM_KINDS)
def test_every_kind_carries_persona_and_difficulty_among_its_demands(kind: str) -> None:
    text = prompt(kind, Style(PERSONAS, ("hard",)))
    demands = text.split("</document>")[1]
    assert any(f"\n- Write as this person would: {persona}." in demands for persona in PERSONAS)
    assert "\n- Difficulty hard: share no telling word" in demands


def test_draws_differ_between_documents_and_kinds_and_come_again_with_the_seed() -> None:
    style = Style(PERSONAS, ("easy", "medium", "hard"))
    drawn = [style.lines(f"d{n}", "query/question", 0) for n in range(600)]
    assert drawn == [style.lines(f"d{n}", "query/question", 0) for n in range(600)]
    assert drawn != [style.lines(f"d{n}", "query/question", 1) for n in range(600)]
    assert drawn != [style.lines(f"d{n}", "query/claim", 0) for n in range(600)]
    counts = Counter(drawn)
    assert len(counts) == 6
    assert min(counts.values()) > 60  # of 100 on average


def test_few_shot_shows_some_of_the_users_own_queries_one_per_line() -> None:
    samples = tuple(f"my knee hurts {n}" for n in range(20))
    style = Style(sample_queries=samples, shown=4)
    text = prompt("few_shot", style)
    shown = [line[2:] for line in text.splitlines() if line.startswith("- my knee")]
    assert len(set(shown)) == 4
    assert set(shown) <= set(samples)
    assert text == prompt("few_shot", style)
    assert shown != [
        line[2:] for line in prompt("few_shot", style, document="d2").splitlines() if line[:9] == "- my knee"
    ]
    assert PLAIN.examples("d", 0) == NO_EXAMPLES


def test_few_shot_without_samples_is_refused_with_the_way_to_give_them() -> None:
    with pytest.raises(ConfigError, match="--sample-queries"):
        PLAIN.check({"few_shot": load_template("query_few_shot")})


def test_a_users_template_that_cannot_carry_a_style_is_told(tmp_path: Path) -> None:
    text = load_template("query_claim").text.replace("{style}", "")
    (tmp_path / "query_claim.txt").write_text(text)
    templates = {"claim": load_template("query_claim", tmp_path)}
    PLAIN.check(templates)
    with pytest.raises(ConfigError, match=r"query_claim.txt lacks \{style\}"):
        Style(PERSONAS).check(templates)


def test_an_unknown_difficulty_is_refused() -> None:
    with pytest.raises(ConfigError, match="easy, medium, hard"):
        Style(difficulties=("insane",)).check({})  # type: ignore[arg-type]


def test_queries_are_read_from_lines_and_from_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("my knee  hurts\n\nwhy?\nwhy?\n")
    (tmp_path / "b.jsonl").write_text('{"_id": "1", "text": "one"}\n{"query": "two"}\n')
    assert read_queries(tmp_path / "a.txt") == ("my knee hurts", "why?")
    assert read_queries(tmp_path / "b.jsonl") == ("one", "two")


def test_a_missing_empty_or_broken_file_of_queries_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "one"}\n{"text": 7}\n')
    for name, told in (("none.txt", "no file of queries"), ("empty.txt", "holds no query")):
        with pytest.raises(ConfigError, match=told):
            read_queries(tmp_path / name)
    with pytest.raises(DataError, match=r"broken.jsonl:2: .*'7' found"):
        read_queries(tmp_path / "broken.jsonl")
