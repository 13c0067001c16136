"""From a recipe's section to an LLM: one source, prices for a cost limit, paths, and what is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Passage
from stm_training.llm.base import LLMAccessError, Message, Request
from stm_training.llm.budget import Budget
from stm_training.llm.build import open_llm
from stm_training.llm.mixture import Mixture
from stm_training.llm.openai_client import OpenAIServer
from stm_training.llm.settings import LLMSection, with_paths
from stm_training.synthesize.section import estimate_section, synthesize_section
from stm_training.synthesize.settings import SynthesizeSection, with_absolute_paths

LOCAL = "http://127.0.0.1:9/v1"
REMOTE = "https://llm.example.org/v1"
PASSAGES = [Passage(f"d{n}", f"Body {n} about an illness.", "T") for n in range(4)]


def recording(path: Path, ids: list[str], author: str = "writer") -> str:
    rows = [
        {
            "_id": id_,
            "queries": [{"type": "question", "text": f"What is known about {id_} by {author}?"}],
            "hard_negative": {"for": "question", "text": f"{author} {id_}: " + "rain and sun " * 6},
            "written_by": author,
        }
        for id_ in ids
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "exactly one of base_url"),
        ({"base_url": LOCAL, "replay": "x"}, "found \\['base_url', 'replay'\\]"),
        ({"base_url": LOCAL, "mixture": [{"replay": "x"}]}, "found \\['base_url', 'mixture'\\]"),
        (
            {"mixture": [{"replay": "x", "base_url": LOCAL}]},
            "exactly one of base_url, replay and local_model",
        ),
        ({"mixture": [{"replay": "x", "weight": 0}]}, "greater than 0"),
        ({"base_url": LOCAL, "budget": {"max_cost": 1}}, "budget.max_cost needs prices"),
        (
            {"mixture": [{"base_url": LOCAL, "model": "a"}], "budget": {"max_cost": 1}},
            "needs prices .* of a",
        ),
        ({"base_url": LOCAL, "budget": {"max_requests": 0}}, "greater than or equal to 1"),
        ({"base_url": LOCAL, "modle": "x"}, "Extra inputs"),
    ],
)
def test_a_section_that_cannot_work_is_refused_with_the_reason(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LLMSection.model_validate(values)


def test_a_free_source_needs_no_prices_for_a_cost_limit() -> None:
    section = LLMSection.model_validate({"local_model": "m", "budget": {"max_cost": 1}})
    assert section.budget is not None


def test_paths_are_made_absolute_and_hub_names_are_not_paths() -> None:
    section = LLMSection.model_validate(
        {"mixture": [{"replay": "r.jsonl"}, {"local_model": "./m"}, {"local_model": "org/name"}]}
    )
    whole = SynthesizeSection(
        llm=section, sample_queries="q.txt", templates="t", kinds=("few_shot", "question")
    )
    moved = with_absolute_paths(whole, lambda path: f"/base/{path}")
    assert (moved.sample_queries, moved.templates) == ("/base/q.txt", "/base/t")
    assert moved.llm is not None
    assert moved.llm.mixture is not None
    assert [one.replay or one.local_model for one in moved.llm.mixture] == [
        "/base/r.jsonl",
        "/base/./m",
        "org/name",
    ]
    assert with_paths(LLMSection(base_url=LOCAL, api_key_file="k"), str.upper).api_key_file == "K"


def test_no_section_is_no_model_and_all_passages() -> None:
    with open_llm(None, PASSAGES) as opened:
        assert (opened.llm, list(opened.passages), opened.meter) == (None, PASSAGES, None)


def test_a_server_is_opened_with_its_prices_and_budget() -> None:
    section = LLMSection.model_validate(
        {
            "base_url": LOCAL,
            "model": "m",
            "concurrency": 7,
            "prices": {"input": 1, "output": 2},
            "budget": {"max_cost": 3, "max_requests": 4},
        }
    )
    with open_llm(section, PASSAGES) as opened:
        assert isinstance(opened.llm, OpenAIServer)
        assert (opened.llm.name, opened.llm.concurrency, opened.hosts) == ("m", 7, ("127.0.0.1 (m)",))
        assert opened.meter is not None
        assert opened.meter.budget == Budget(max_requests=4, max_cost=3)
        assert opened.meter.price("m").output == 2


def test_a_remote_server_needs_leave_and_the_refusal_names_the_documents() -> None:
    with pytest.raises(ConfigError, match="the text of 4 documents would be sent there"):
        with open_llm(LLMSection(base_url=REMOTE, model="m"), PASSAGES):
            pass


def test_an_estimate_needs_neither_leave_nor_key_and_can_ask_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    llm = LLMSection.model_validate({"base_url": REMOTE, "model": "m", "prices": {"input": 1, "output": 1}})
    section = SynthesizeSection(llm=llm, hard_negatives=True)
    found, hosts = estimate_section(section, PASSAGES, journal=tmp_path / "none.jsonl")
    assert (found.total.requests, hosts) == (16, ("llm.example.org (m)",))
    assert found.total.cost > 0
    assert list(tmp_path.iterdir()) == []
    with open_llm(llm, PASSAGES, sending=False) as opened, pytest.raises(LLMAccessError):
        assert opened.llm is not None
        opened.llm.complete(Request((Message("user", "x"),)))


def test_recorded_completions_are_served_and_unrecorded_passages_are_listed(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", ["d0", "d2"])
    section = SynthesizeSection(llm=LLMSection(replay=file), kinds=("question",))
    result = synthesize_section(section, PASSAGES, journal=tmp_path / "j")
    assert [pair.positive_id for pair in result.pairs] == ["d0", "d2"]
    assert {outcome.document_id: outcome.status for outcome in result.outcomes} == {
        "d0": "done",
        "d1": "failed",
        "d2": "done",
        "d3": "failed",
    }
    assert "2 documents have no recorded completion." in result.notes
    with pytest.raises(DataError, match="for none of the 1 passages"):
        synthesize_section(section, PASSAGES[1:2], journal=tmp_path / "j")


def test_no_key_of_the_user_goes_to_recorded_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    file = recording(tmp_path / "r.jsonl", ["d0"])
    with open_llm(LLMSection(replay=file), PASSAGES) as opened:
        assert isinstance(opened.llm, OpenAIServer)
        assert opened.llm._client.api_key != "sk-secret"


def test_a_mixture_of_recordings_writes_by_weight_and_resumes(tmp_path: Path) -> None:
    many = [Passage(f"d{n}", f"Body {n} about an illness.") for n in range(60)]
    files = [recording(tmp_path / f"{a}.jsonl", [p.id for p in many], a) for a in ("anna", "bert")]
    llm = LLMSection.model_validate(
        {
            "mixture": [
                {"replay": files[0], "model": "anna", "weight": 1},
                {"replay": files[1], "model": "bert", "weight": 3},
            ]
        }
    )
    section = SynthesizeSection(llm=llm, kinds=("question",), hard_negatives=False)
    result = synthesize_section(section, many, journal=tmp_path / "j", seed=1)
    assert set(result.sources) == {"anna", "bert"}
    assert result.sources["bert"] > result.sources["anna"] > 0
    again = synthesize_section(section, many, journal=tmp_path / "j", seed=1)
    assert (again.counts["asked"], again.pairs) == (0, result.pairs)
    with open_llm(llm, many) as opened:
        assert isinstance(opened.llm, Mixture)


def test_the_estimate_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    file = recording(tmp_path / "r.jsonl", ["d0", "d1", "d2", "d3"])
    section = SynthesizeSection(llm=LLMSection(replay=file), kinds=("question",))
    told: list[str] = []
    done: list[int] = []

    def progress(count: int, total: int) -> None:
        assert told
        done.append(count)

    synthesize_section(section, PASSAGES, journal=tmp_path / "j", tell=told.append, progress=progress)
    assert told[0].startswith("Estimate: 4 documents go to recorded completions")
    assert done[-1] == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tasks": {"domain": "x"}}, "llm is needed"),
        ({"kinds": ["few_shot"]}, "sample_queries"),
        ({"kinds": ["riddle"]}, "few_shot"),
        ({"difficulty": ["insane"]}, "easy"),
        ({"llm": {"base_url": LOCAL}, "tasks": {"domain": ""}}, "at least 1 character"),
    ],
)
def test_a_synthesize_section_that_cannot_work_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SynthesizeSection.model_validate(values)
