"""Invented retrieval tasks and pairs: resumable, filtered, and told apart from the corpus."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.llm.base import Completion, Request
from stm_training.llm.budget import Budget, Meter
from stm_training.llm.markers import marked_task
from stm_training.synthesize.parsing import UnusableAnswer, parse_pair, parse_tasks
from stm_training.synthesize.result import joined
from stm_training.synthesize.run import synthesize
from stm_training.synthesize.tasks import Invention, estimate_invention, invent_pairs

DOMAIN = "hay fever, for patients"
POSITIVE = "Antihistamine tablets relieve sneezing and itching within an hour, case {n} of {task}."
NEGATIVE = "Asthma inhalers open the airways; they are taken before sport, in case {n} of another kind."


class Inventor:
    """Knows a few tasks, some of them twice, and writes pairs for them."""

    name = "inventor"
    concurrency = 3

    def __init__(self, tasks: int = 8, per_round: int = 3) -> None:
        self._tasks = [f"Given symptom {n}, retrieve remedies." for n in range(tasks)]
        self._per_round = per_round
        self._lock = threading.Lock()
        self.prompts: list[str] = []

    def complete(self, request: Request) -> Completion:
        prompt = request.messages[0].content
        with self._lock:
            self.prompts.append(prompt)
        if marked_task(prompt) == "tasks/list":
            known = set(re.findall(r"  - (.*)", prompt))
            new = [task for task in self._tasks if task not in known][: self._per_round]
            return Completion(json.dumps({"tasks": [*new, *list(known)[:1]]}), self.name)
        task = re.search(r"^Retrieval task: (.*)$", prompt, re.MULTILINE)
        assert task is not None
        n = len(self.prompts)
        pair = {
            "query": f"what stops sneezing {request.seed}",
            "positive": POSITIVE.format(n=n, task=task[1]),
            "hard_negative": NEGATIVE.format(n=n),
        }
        return Completion(json.dumps(pair), self.name, 10, 5)


def test_tasks_are_invented_in_rounds_without_repeats_and_pairs_written_for_each(tmp_path: Path) -> None:
    llm = Inventor()
    result = invent_pairs(Invention(DOMAIN, tasks=5, pairs_per_task=2), llm, journal=tmp_path / "j")
    assert len(result.pairs) == 10
    assert {pair.kind for pair in result.pairs} == {"task"}
    assert all(pair.negatives and pair.source == "inventor" for pair in result.pairs)
    assert len({pair.positive_id for pair in result.pairs}) == 10
    assert all(str(pair.positive_id).startswith("task:") for pair in result.pairs)
    assert all(DOMAIN in prompt for prompt in llm.prompts)
    lists = [prompt for prompt in llm.prompts if marked_task(prompt) == "tasks/list"]
    assert len(lists) == 2
    assert "(none so far)" in lists[0]
    assert "symptom 0" in lists[1]
    assert result.notes[-1] == "5 retrieval tasks of 5 were invented."


def test_a_model_that_knows_no_more_tasks_ends_the_list_and_the_note_says_so(tmp_path: Path) -> None:
    result = invent_pairs(Invention(DOMAIN, tasks=50, pairs_per_task=1), Inventor(8), journal=tmp_path / "j")
    assert len(result.pairs) == 8
    assert result.notes[-1] == "8 retrieval tasks of 50 were invented."


def test_pairs_of_one_task_vary_in_length_clarity_and_reader(tmp_path: Path) -> None:
    llm = Inventor(1)
    invent_pairs(Invention(DOMAIN, tasks=1, pairs_per_task=30), llm, journal=tmp_path / "j")
    lines = {
        line for prompt in llm.prompts for line in prompt.splitlines() if line.startswith("- The query has")
    }
    assert len(lines) > 15


def test_a_stopped_invention_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    invention = Invention(DOMAIN, tasks=5, pairs_per_task=3)
    first, second, whole = Inventor(), Inventor(), Inventor()
    cut = invent_pairs(invention, first, journal=tmp_path / "j", meter=Meter(Budget(max_requests=9)))
    assert (len(first.prompts), cut.limit) == (9, "max_requests of 9")
    assert sum(not failure.asked for failure in cut.failures) == 2 + 15 - 9
    resumed = invent_pairs(invention, second, journal=tmp_path / "j")
    assert not set(first.prompts) & set(second.prompts)
    assert len(first.prompts) + len(second.prompts) == 17
    uninterrupted = invent_pairs(invention, whole, journal=tmp_path / "other")
    assert [pair.query for pair in resumed.pairs] == [pair.query for pair in uninterrupted.pairs]


def test_bad_pairs_are_filtered_and_listed(tmp_path: Path) -> None:
    class Careless(Inventor):
        def complete(self, request: Request) -> Completion:
            done = super().complete(request)
            if "tasks" in done.text:
                return done
            n = len(self.prompts)
            texts = {
                0: {"query": "What does this passage say?", "positive": POSITIVE, "hard_negative": NEGATIVE},
                1: {"query": f"what helps {n}", "positive": "Too short.", "hard_negative": NEGATIVE},
                2: {"query": f"what helps {n}", "positive": POSITIVE, "hard_negative": POSITIVE},
                3: {"query": "", "positive": ""},
            }
            return Completion(json.dumps(texts[n % 4]), self.name)

    invention = Invention(DOMAIN, tasks=2, pairs_per_task=10)
    result = invent_pairs(invention, Careless(), journal=tmp_path / "j", concurrency=1, max_reasks=0)
    assert set(result.dropped) == {"refers_to_passage", "positive_too_short", "negative_like_positive"}
    assert {failure.reason for failure in result.failures} == {
        'no usable answer in 1 tries: its JSON has no text for "query"'
    }
    assert len(result.outcomes) == 20
    assert all(not pair.negatives for pair in result.pairs)


def test_the_instruction_is_kept_with_the_pair_where_asked_for_and_negatives_can_be_left_out(
    tmp_path: Path,
) -> None:
    invention = Invention(DOMAIN, tasks=1, pairs_per_task=1, prompt="{task}\nQuery: ")
    (pair,) = invent_pairs(invention, Inventor(), journal=tmp_path / "j", negatives=False).pairs
    assert pair.prompt == "Given symptom 0, retrieve remedies.\nQuery: "
    assert pair.negatives == ()


def test_held_out_queries_are_never_invented_into_the_training_data(tmp_path: Path) -> None:
    invention = Invention(DOMAIN, tasks=1, pairs_per_task=1)
    (pair,) = invent_pairs(invention, Inventor(), journal=tmp_path / "j").pairs
    result = invent_pairs(
        invention, Inventor(), journal=tmp_path / "j", held_out_queries=[pair.query.upper()]
    )
    assert (result.pairs, result.dropped["held_out"].count) == ([], 1)


def test_two_syntheses_join_into_one_without_duplicates(tmp_path: Path) -> None:
    class Both(Inventor):
        def complete(self, request: Request) -> Completion:
            if marked_task(request.messages[0].content) != "query/question":
                return super().complete(request)
            return Completion(json.dumps({"queries": ["How is sneezing stopped?"]}), self.name)

    passages = [Passage("d", "Body of a text about hay fever.")]
    one = synthesize(passages, Both(), journal=tmp_path / "j", kinds=["question"], negatives=False)
    two = invent_pairs(Invention(DOMAIN, tasks=1, pairs_per_task=1), Both(), journal=tmp_path / "j")
    result = joined(joined(one, two), one)
    assert [pair.kind for pair in result.pairs] == ["question", "task"]
    assert result.counts["pairs"] == 2
    assert result.counts["asked"] == 1 + 2 + 1
    assert [outcome.document_id for outcome in result.outcomes][:1] == ["d"]


def test_an_estimate_counts_rounds_and_pairs() -> None:
    llm = Inventor()
    found = estimate_invention(Invention(DOMAIN, tasks=25, pairs_per_task=4), llm)
    assert llm.prompts == []
    assert {task: one.requests for task, one in found.items()} == {"tasks/list": 3, "tasks/pair": 100}


@pytest.mark.parametrize(
    "invention", [Invention(" "), Invention("d", tasks=0), Invention("d", pairs_per_task=0)]
)
def test_nothing_to_invent_is_refused(invention: Invention, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a domain in words"):
        invent_pairs(invention, Inventor(), journal=tmp_path / "j")


@pytest.mark.parametrize(
    ("answer", "tasks"),
    [
        ('{"tasks": ["one", "two"]}', ["one", "two"]),
        ('```json\n["one", {"task": "two"}]\n```', ["one", "two"]),
        ("1. one\n2. two", ["one", "two"]),
    ],
)
def test_tasks_are_read_in_many_forms(answer: str, tasks: list[str]) -> None:
    assert parse_tasks(answer, limit=5) == tasks


def test_pairs_are_read_by_their_usual_names_and_an_incomplete_one_is_told() -> None:
    answer = '```json\n{"user_query": "q\\n1", "positive_document": "p", "hard_negative_document": ""}\n```'
    assert parse_pair(answer) == ("q 1", "p", None)
    for bad, told in (('{"query": "q"}', '"positive"'), ("[1, 2]", "not a JSON object"), ("none", "broken")):
        with pytest.raises(UnusableAnswer, match=told):
            parse_pair(bad)
