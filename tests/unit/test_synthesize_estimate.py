"""The estimate before spending: what would be asked, along the path that a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stm_training.data.records import Passage
from stm_training.llm.base import Completion, Request
from stm_training.llm.budget import Budget, Meter, Prices, prompt_tokens
from stm_training.llm.journal import Journal
from stm_training.llm.markers import marked_task
from stm_training.llm.mixture import Mixture
from stm_training.synthesize.estimate import estimate
from stm_training.synthesize.run import synthesize

PASSAGES = [Passage(f"d{n}", f"Body number {n} about illness {n} and its cure.") for n in range(6)]


class Clerk:
    """Keeps what it was asked; the first answers to claims are unusable."""

    def __init__(self, name: str = "clerk") -> None:
        self.name = name
        self.requests: list[Request] = []

    def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        n = len(self.requests)
        task = marked_task(request.messages[0].content) or ""
        text = f"Weather report {n}: rain in the north, sun in the south, and little wind along the coast."
        if task == "query/claim" and len(request.messages) == 1:
            text = ""
        elif task.startswith("query/"):
            text = json.dumps({"queries": [f"Which {task[6:]} fits ailment {n}?"]})
        return Completion(text, self.name)


def test_an_estimate_asks_nothing_and_foresees_requests_by_task() -> None:
    llm = Clerk()
    found = estimate(PASSAGES, llm, kinds=["question", "long"])
    assert llm.requests == []
    assert {task: one.requests for task, one in found.by_task.items()} == {
        "query/question": 6,
        "query/long": 6,
        "hard_negative": 6,
    }
    assert found.total.requests == 18


def test_the_prompts_measured_are_the_prompts_sent(tmp_path: Path) -> None:
    llm = Clerk()
    kinds = ["question", "keywords"]
    found = estimate(PASSAGES, llm, kinds=kinds, negatives=False, seed=3)
    synthesize(PASSAGES, llm, journal=tmp_path / "j", kinds=kinds, negatives=False, seed=3)
    assert found.total.prompt_tokens == sum(prompt_tokens(llm, request) for request in llm.requests)


def test_what_the_journal_holds_is_not_foreseen_again_re_asks_included(tmp_path: Path) -> None:
    llm = Clerk()
    synthesize(PASSAGES[:4], llm, journal=tmp_path / "j", kinds=["claim"])
    with Journal(tmp_path / "j") as journal:
        found = estimate(PASSAGES, llm, journal=journal, kinds=["claim"])
        everything = estimate(PASSAGES, llm, kinds=["claim"])
        other_seed = estimate(PASSAGES, llm, journal=journal, kinds=["claim"], seed=1)
    assert found.reused == 4 * 3  # the claim, its re-ask, the negative
    assert {task: one.requests for task, one in found.by_task.items()} == {
        "query/claim": 2,
        "hard_negative": 2,
    }
    assert everything.total.requests == other_seed.total.requests == 12
    assert found.spent.requests == 12


def test_costs_follow_the_prices_and_the_worst_case_the_longest_answer() -> None:
    meter = Meter(prices={"clerk": Prices(input=2.0, output=8.0)})
    total = estimate(PASSAGES, Clerk(), meter=meter).total
    assert total.cost == pytest.approx(
        (2.0 * total.prompt_tokens + 8.0 * total.completion_tokens) / 1_000_000
    )
    assert total.most == pytest.approx((2.0 * total.prompt_tokens + 8.0 * 24 * 512) / 1_000_000)
    assert total.completion_tokens < 24 * 512


def test_each_member_of_a_mixture_is_priced_for_its_own_tasks() -> None:
    cheap, dear = Clerk("cheap"), Clerk("dear")
    prices = {"cheap": Prices(), "dear": Prices(input=1.0)}
    one = estimate(PASSAGES, dear, meter=Meter(prices=prices)).total.cost
    mixed = estimate(PASSAGES, Mixture([(cheap, 1), (dear, 1)]), meter=Meter(prices=prices)).total.cost
    assert 0 < mixed < one


def test_the_estimate_reads_well_and_names_host_documents_and_cost() -> None:
    meter = Meter(Budget(max_cost=1), {"clerk": Prices(1.0, 1.0)})
    lines = estimate(PASSAGES, Clerk(), meter=meter).lines(["llm.example.org (clerk)"])
    assert lines[0].startswith("Estimate: 6 documents go to llm.example.org (clerk)")
    assert any("query/claim" in line and "6 requests" in line and "cost" in line for line in lines)
    assert lines[-1].split()[:2] == ["together", "24"]
