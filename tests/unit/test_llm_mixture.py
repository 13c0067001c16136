"""Several generators: shares follow the weights, and a task always falls to the same one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.llm.base import Completion, Request
from stm_training.llm.mixture import Mixture
from stm_training.synthesize.run import synthesize

PASSAGES = [Passage(f"d{n}", f"Body number {n} about illness {n} and its cure.") for n in range(40)]


class Named:
    def __init__(self, name: str, concurrency: int = 2) -> None:
        self.name = name
        self.concurrency = concurrency
        self.requests: list[Request] = []
        self.announced: list[int] = []

    def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        text = json.dumps({"queries": [f"What fits ailment {len(self.requests)} of {self.name}?"]})
        return Completion(text, self.name)

    def announce(self, document_count: int) -> None:
        self.announced.append(document_count)


def choices(mixture: Mixture, count: int = 1500) -> list[str]:
    return [mixture.choose(f"d{n}", "query/question").name for n in range(count)]


def test_shares_follow_the_weights() -> None:
    counts = Counter(choices(Mixture([(Named("a"), 1), (Named("b"), 3), (Named("c"), 4)])))
    for name, share in (("a", 1 / 8), ("b", 3 / 8), ("c", 4 / 8)):
        assert counts[name] / 1500 == pytest.approx(share, abs=0.045)


def test_the_choice_depends_on_document_task_and_seed_alone() -> None:
    members = [(Named("a"), 1.0), (Named("b"), 1.0)]
    assert choices(Mixture(members)) == choices(Mixture(list(reversed(members))))
    assert choices(Mixture(members)) != choices(Mixture(members, seed=1))
    mixture = Mixture(members)
    claims = [mixture.choose(f"d{n}", "query/claim").name for n in range(1500)]
    assert claims != choices(mixture)


def test_a_new_member_takes_tasks_over_and_shuffles_none_of_the_others() -> None:
    before = choices(Mixture([(Named("a"), 1), (Named("b"), 1)]))
    after = choices(Mixture([(Named("a"), 1), (Named("b"), 1), (Named("c"), 1)]))
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert moved
    assert {new for _, new in moved} == {"c"}


def test_a_resumed_run_asks_nothing_and_a_reask_goes_to_the_same_model(tmp_path: Path) -> None:
    class Confused(Named):
        def complete(self, request: Request) -> Completion:
            completion = super().complete(request)
            return completion if len(request.messages) > 1 else Completion("", self.name)

    first = [Confused("a"), Confused("b")]
    result = synthesize(
        PASSAGES,
        Mixture([(llm, 1) for llm in first]),
        journal=tmp_path / "j",
        kinds=["question"],
        negatives=False,
    )
    assert result.counts["reasked"] == 40
    assert all(len(llm.requests) > 10 for llm in first)
    assert {pair.source for pair in result.pairs} == {"a", "b"}
    again = [Named("a"), Named("b")]
    second = synthesize(
        PASSAGES,
        Mixture([(llm, 1) for llm in again]),
        journal=tmp_path / "j",
        kinds=["question"],
        negatives=False,
    )
    assert second.pairs == result.pairs
    assert all(llm.requests == [] for llm in again)


def test_every_member_says_where_documents_go_and_all_work_at_once(tmp_path: Path) -> None:
    members = [Named("a", 2), Named("b", 3)]
    mixture = Mixture([(llm, 1) for llm in members])
    synthesize(PASSAGES[:3], mixture, journal=tmp_path / "j", negatives=False)
    assert [llm.announced for llm in members] == [[3], [3]]
    assert mixture.concurrency == 5


@pytest.mark.parametrize(
    "members", [[], [("a", 0.0)], [("a", -1.0)], [("a", 1.0), ("a", 2.0)], [("a", float("inf"))]]
)
def test_an_unusable_mixture_is_refused(members: list[tuple[str, float]]) -> None:
    with pytest.raises(ConfigError):
        Mixture([(Named(name), weight) for name, weight in members])
