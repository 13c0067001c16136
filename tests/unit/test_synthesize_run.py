"""Synthesis with a stand-in model: pairs, negatives, re-asks, failures, order."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, LLMError
from stm_training.data.records import Passage
from stm_training.llm.base import Completion, LLMAccessError, LLMRequestError, Request
from stm_training.llm.markers import marked_document, marked_task
from stm_training.synthesize.run import SynthesisResult, synthesize

PASSAGES = [
    Passage(f"d{n}", f"Body number {n} about illness {n} and its cure.", f"Title {n}") for n in range(12)
]
NEGATIVE = "An entirely different text about weather, which mentions neither cure nor body {n} at all today."

Answer = Callable[[str, int, Request], str]


class StandIn:
    """Answers by (task, document number); counts what is asked."""

    name = "stand-in"
    concurrency = 4

    def __init__(self, answer: Answer | None = None) -> None:
        self._answer = answer or good
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self.most_at_once = self._now = 0

    def complete(self, request: Request) -> Completion:
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(random.random() / 200)
            prompt = request.messages[0].content
            document, task = marked_document(prompt), marked_task(prompt)
            assert document is not None
            assert task is not None
            return Completion(
                self._answer(task, int(document.split()[1]), request), "stand-in-7b", 10, 5, "stop"
            )
        finally:
            with self._lock:
                self._now -= 1


def good(task: str, n: int, request: Request) -> str:
    if task.startswith("hard_negative/"):
        return NEGATIVE.format(n=n)
    return json.dumps({"queries": [f"Which {task[6:]} fits ailment {n}?"]})


def outcome(result: SynthesisResult) -> tuple[object, ...]:
    return result.pairs, result.failures, result.dropped


def test_every_passage_and_kind_becomes_a_pair_in_order_with_its_source_and_kind(tmp_path: Path) -> None:
    llm = StandIn()
    seen: list[tuple[int, int]] = []
    result = synthesize(
        PASSAGES, llm, journal=tmp_path / "j.jsonl", progress=lambda done, total: seen.append((done, total))
    )
    kinds = ("question", "claim", "keywords")
    assert [(p.positive_id, p.kind) for p in result.pairs] == [(d.id, k) for d in PASSAGES for k in kinds]
    first = result.pairs[0]
    assert (first.query, first.positive) == ("Which question fits ailment 0?", PASSAGES[0].content)
    assert (first.source, first.negatives) == ("stand-in-7b", (NEGATIVE.format(n=0),))
    assert len({p.query_id for p in result.pairs}) == len(result.pairs)
    assert result.counts["asked"] == len(llm.requests) == 12 * 4
    assert (result.counts["prompt_tokens"], result.counts["completion_tokens"]) == (480, 240)
    assert result.sources == {"stand-in-7b": 36}
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_the_result_does_not_depend_on_concurrency_and_its_bound_is_kept(tmp_path: Path) -> None:
    one, many = StandIn(), StandIn()
    first = synthesize(PASSAGES, one, journal=tmp_path / "1", concurrency=1)
    second = synthesize(PASSAGES, many, journal=tmp_path / "2", concurrency=3)
    assert outcome(first) == outcome(second)
    assert one.most_at_once == 1
    assert 1 < many.most_at_once <= 3


def test_a_second_run_asks_nothing_and_brings_the_same(tmp_path: Path) -> None:
    first = synthesize(PASSAGES, StandIn(), journal=tmp_path / "j")
    again = StandIn()
    second = synthesize(PASSAGES, again, journal=tmp_path / "j")
    assert again.requests == []
    assert second.counts["reused"] == 48
    assert outcome(first) == outcome(second)


def test_a_changed_text_prompt_or_setting_reuses_no_row_of_the_old_one(tmp_path: Path) -> None:
    synthesize(PASSAGES, StandIn(), journal=tmp_path / "j", kinds=["question"], negatives=False)
    changed = [Passage("d0", "Body number 0 rewritten.", "Title 0"), *PASSAGES[1:]]
    llm = StandIn()
    synthesize(changed, llm, journal=tmp_path / "j", kinds=["question"], negatives=False)
    assert len(llm.requests) == 1
    for name in ("query_question", "query_claim"):
        source = Path(__file__).parents[2] / "training/stm_training/synthesize/templates" / f"{name}.txt"
        (tmp_path / f"{name}.txt").write_text(source.read_text() + "Be brief.\n")
    llm = StandIn()
    synthesize(PASSAGES, llm, journal=tmp_path / "j", kinds=["question"], negatives=False, templates=tmp_path)
    assert len(llm.requests) == 12
    llm = StandIn()
    synthesize(PASSAGES, llm, journal=tmp_path / "j", kinds=["question"], negatives=False, seed=1)
    assert len(llm.requests) == 12


def test_the_negative_goes_to_the_question_alone_if_it_is_not_shared(tmp_path: Path) -> None:
    result = synthesize(PASSAGES[:1], StandIn(), journal=tmp_path / "j", share_negative=False)
    assert [(p.kind, len(p.negatives)) for p in result.pairs] == [
        ("question", 1),
        ("claim", 0),
        ("keywords", 0),
    ]


def test_the_negative_is_written_for_the_first_query_that_passes_the_filters(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        return "What does this passage say?" if task == "query/question" else good(task, n, request)

    llm = StandIn(answer)
    result = synthesize(PASSAGES[:1], llm, journal=tmp_path / "j")
    assert "Query: Which claim fits ailment 0?" in llm.requests[-1].messages[0].content
    assert result.dropped["refers_to_passage"].count == 1
    assert [p.kind for p in result.pairs] == ["claim", "keywords"]


def test_a_negative_too_like_its_positive_is_dropped_and_the_pairs_stay(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        return PASSAGES[n].content if task.startswith("hard") else good(task, n, request)

    result = synthesize(PASSAGES, StandIn(answer), journal=tmp_path / "j")
    assert result.dropped["negative_like_positive"].count == 12
    assert len(result.pairs) == 36
    assert all(p.negatives == () for p in result.pairs)


def test_a_query_that_two_passages_got_is_kept_once(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        return '{"queries": ["What cures it?"]}'

    result = synthesize(
        PASSAGES, StandIn(answer), journal=tmp_path / "j", kinds=["question"], negatives=False
    )
    assert [p.positive_id for p in result.pairs] == ["d0"]
    assert result.dropped["duplicate"].count == 11


def test_an_unusable_answer_is_put_back_with_the_reason_and_the_better_one_counts(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        return good(task, n, request) if len(request.messages) > 1 else '{"queries": ["half'

    llm = StandIn(answer)
    result = synthesize(PASSAGES[:1], llm, journal=tmp_path / "j", kinds=["question"], negatives=False)
    assert [p.query for p in result.pairs] == ["Which question fits ailment 0?"]
    assert [m.role for m in llm.requests[1].messages] == ["user", "assistant", "user"]
    assert "its JSON is broken or cut off" in llm.requests[1].messages[2].content
    assert result.counts["reasked"] == 1


def test_re_asks_are_bounded_and_a_resumed_run_does_not_begin_them_anew(tmp_path: Path) -> None:
    llm = StandIn(lambda task, n, request: "")
    result = synthesize(PASSAGES[:1], llm, journal=tmp_path / "j", kinds=["question"], max_reasks=2)
    assert len(llm.requests) == 3
    assert [str(f) for f in result.failures] == [
        "d0 query/question: no usable answer in 3 tries: it is empty"
    ]
    again = StandIn()
    second = synthesize(PASSAGES[:1], again, journal=tmp_path / "j", kinds=["question"], max_reasks=2)
    assert again.requests == []
    assert second.failures == result.failures


def test_a_failed_request_is_listed_and_asked_again_only_on_request(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        if n == 3 and task == "query/claim":
            raise LLMRequestError("long message", reason="HTTP 404: gone")
        return good(task, n, request)

    first = synthesize(PASSAGES, StandIn(answer), journal=tmp_path / "j")
    assert [str(f) for f in first.failures] == ["d3 query/claim: HTTP 404: gone"]
    assert first.counts["pairs"] == 35
    quiet = StandIn()
    assert outcome(synthesize(PASSAGES, quiet, journal=tmp_path / "j")) == outcome(first)
    assert quiet.requests == []
    repaired = synthesize(PASSAGES, StandIn(), journal=tmp_path / "j", retry_failures=True)
    assert (repaired.counts["asked"], repaired.counts["pairs"], repaired.failures) == (1, 36, [])


def test_a_refused_key_ends_the_run_and_keeps_the_journal(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        if n == 5:
            raise LLMAccessError("no")
        return good(task, n, request)

    with pytest.raises(LLMAccessError):
        synthesize(PASSAGES, StandIn(answer), journal=tmp_path / "j", concurrency=1)
    rest = StandIn()
    result = synthesize(PASSAGES, rest, journal=tmp_path / "j", concurrency=1)
    assert len(rest.requests) == 48 - 5 * 4
    assert result.failures == []


def test_a_server_that_is_gone_ends_the_run_soon_and_the_next_run_asks_those_again(tmp_path: Path) -> None:
    def answer(task: str, n: int, request: Request) -> str:
        raise LLMRequestError("gone", reason="not reached (ConnectError)", asked=False)

    llm = StandIn(answer)
    with pytest.raises(LLMError, match="8 requests in a row did not reach the server"):
        synthesize(PASSAGES, llm, journal=tmp_path / "j", concurrency=2)
    assert len(llm.requests) <= 10
    assert synthesize(PASSAGES, StandIn(), journal=tmp_path / "j").counts["asked"] == 48


def test_several_queries_of_a_kind_are_asked_for_at_once(tmp_path: Path) -> None:
    from stm_training.synthesize.queries import Sampling

    def answer(task: str, n: int, request: Request) -> str:
        return json.dumps({"queries": [f"What helps {n} {x}?" for x in ("one", "two", "three")]})

    llm = StandIn(answer)
    sampling = Sampling(per_kind=2)
    result = synthesize(
        PASSAGES[:1], llm, journal=tmp_path / "j", kinds=["question"], negatives=False, sampling=sampling
    )
    assert [p.query for p in result.pairs] == ["What helps 0 one?", "What helps 0 two?"]


@pytest.mark.parametrize("kinds", [[], ["riddle"], ["question", "question"], ["sentence"]])
def test_unusable_kinds_are_refused_before_anything_is_asked(tmp_path: Path, kinds: list[str]) -> None:
    llm = StandIn()
    with pytest.raises(ConfigError, match="question, claim, keywords, title"):
        synthesize(PASSAGES, llm, journal=tmp_path / "j", kinds=kinds)
    assert llm.requests == []


def test_a_model_without_a_journal_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a journal"):
        synthesize(PASSAGES, StandIn())
