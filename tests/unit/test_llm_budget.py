"""A budget is never passed, whoever asks at once, and says what it costs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from stm_training.data.records import Passage
from stm_training.llm.base import Completion, LLMRequestError, Message, Request
from stm_training.llm.budget import Budget, BudgetSpent, Meter, Prices, estimated_tokens, prompt_tokens
from stm_training.llm.journal import Journal, JournalRow
from stm_training.llm.markers import marked_task
from stm_training.synthesize.progress import SynthesisProgress
from stm_training.synthesize.run import synthesize

PASSAGES = [Passage(f"d{n}", f"Body number {n} about illness {n} and its cure.") for n in range(8)]
REQUEST = Request((Message("user", "x" * 300),), max_tokens=100)


class Clerk:
    """Answers well, with the tokens it is told to bill."""

    concurrency = 4

    def __init__(self, name: str = "clerk", billed: tuple[int, int] = (100, 10), wait: float = 0.0) -> None:
        self.name = name
        self._billed = billed
        self._wait = wait
        self._lock = threading.Lock()
        self.count = 0

    def complete(self, request: Request) -> Completion:
        with self._lock:
            self.count += 1
            n = self.count
        time.sleep(self._wait)
        task = marked_task(request.messages[0].content) or ""
        text = f"Weather report {n}: rain in the north, sun in the south, and little wind along the coast."
        if task.startswith("query/"):
            text = json.dumps({"queries": [f"Which {task[6:]} fits ailment {n}?"]})
        return Completion(text, self.name, *self._billed, "stop")


def completed(prompt: int, written: int) -> Completion:
    return Completion("answer", "m", prompt, written)


def test_prices_are_per_million_tokens() -> None:
    assert Prices(input=2.0, output=10.0).cost(1_000_000, 500_000) == pytest.approx(7.0)


@pytest.mark.parametrize(
    "text", ["Asthma narrows the airways and makes breathing hard.", "哮喘使气道变窄", ""]
)
def test_an_estimate_counts_rather_too_many_tokens(text: str) -> None:
    words = len(text.split()) if text.isascii() else len(text)
    assert estimated_tokens(text) >= words


def test_a_model_that_knows_its_tokenizer_is_asked_for_the_count() -> None:
    class Knowing(Clerk):
        def count_tokens(self, request: Request) -> int:
            return 7

    assert prompt_tokens(Knowing(), REQUEST) == 7
    assert prompt_tokens(Clerk(), REQUEST) == 100 + 8


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        (Budget(max_requests=2), 2),
        (Budget(max_tokens=3 * 208), 3),
        (Budget(max_cost=1.0), 4),  # each costs at most 108 * 1e-3 + 100 * 1e-3
    ],
)
def test_what_could_pass_a_limit_is_refused_before_it_is_asked(budget: Budget, fits: int) -> None:
    meter = Meter(budget, {"clerk": Prices(input=1000, output=1000)})
    for _ in range(fits):
        held = meter.hold(Clerk(), REQUEST)
        meter.settle(held, Clerk(), REQUEST, completed(108, 100))
    with pytest.raises(BudgetSpent):
        meter.hold(Clerk(), REQUEST)
    assert meter.limit is not None
    assert meter.spent.requests == fits


def test_a_limit_that_stopped_once_stops_for_good() -> None:
    meter = Meter(Budget(max_tokens=300))
    meter.settle(meter.hold(Clerk(), REQUEST), Clerk(), REQUEST, completed(108, 100))
    with pytest.raises(BudgetSpent, match="max_tokens of 300"):
        meter.hold(Clerk(), REQUEST)
    with pytest.raises(BudgetSpent):  # a smaller one would fit, but the outcome must not depend on the order
        meter.hold(Clerk(), Request((Message("user", "x"),), max_tokens=1))


def test_one_that_does_not_fit_waits_for_those_under_way_and_goes_when_they_took_less() -> None:
    meter = Meter(Budget(max_tokens=300))
    first = meter.hold(Clerk(), REQUEST)
    passed = threading.Event()

    def second() -> None:
        meter.hold(Clerk(), REQUEST)
        passed.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    assert not passed.wait(0.2)
    meter.settle(first, Clerk(), REQUEST, completed(50, 10))  # 60 of the 208 that were set aside
    assert passed.wait(10)


def test_a_server_that_counts_more_than_estimated_makes_later_estimates_higher() -> None:
    meter = Meter(Budget(max_tokens=1000))
    meter.settle(meter.hold(Clerk(), REQUEST), Clerk(), REQUEST, completed(324, 0))  # three times 108
    assert meter.hold(Clerk(), REQUEST).prompt_tokens == 324


def test_tokens_that_a_server_does_not_count_are_estimated_and_written_down(tmp_path: Path) -> None:
    synthesize(
        PASSAGES[:1], Clerk(billed=(0, 0)), journal=tmp_path / "j", kinds=["question"], negatives=False
    )
    with Journal(tmp_path / "j") as journal:
        (row,) = journal.rows()
    assert row.completion is not None
    assert row.completion.prompt_tokens > 100
    assert row.completion.completion_tokens == estimated_tokens(row.completion.text)


def test_failures_count_as_requests_and_those_never_sent_do_not() -> None:
    meter = Meter()
    meter.settle_failure(meter.hold(Clerk(), REQUEST))
    meter.release(meter.hold(Clerk(), REQUEST))
    assert (meter.spent.requests, meter.spent.prompt_tokens) == (1, 0)


def test_earlier_runs_count_by_the_name_that_was_asked() -> None:
    meter = Meter(prices={"cheap": Prices(1, 1), "dear": Prices(10, 10)})
    rows = [
        JournalRow("a", "d", "t", Completion("x", "cheap-2026-01", 1_000_000, 0), generator="cheap"),
        JournalRow("b", "d", "t", Completion("x", "dear-2026-01", 0, 1_000_000), generator="dear"),
        JournalRow("c", "d", "t", None, "HTTP 404", generator="dear"),
    ]
    meter.count_earlier(rows)
    assert (meter.spent.requests, meter.spent.cost) == (3, pytest.approx(11.0))


def test_a_hard_budget_is_never_passed_by_many_threads_and_the_rest_is_listed(tmp_path: Path) -> None:
    llm = Clerk(billed=(200, 20), wait=0.002)
    meter = Meter(Budget(max_cost=0.004), {"clerk": Prices(input=1.0, output=1.0)})
    result = synthesize(PASSAGES, llm, journal=tmp_path / "j", meter=meter)
    assert result.cost <= 0.004
    assert 0 < llm.count < 8 * 4
    unasked = [failure for failure in result.failures if not failure.asked]
    assert result.limit == "max_cost of 0.004"
    assert "The budget (max_cost of 0.004) is spent" in result.notes[-1]
    # every task was answered, or is listed; a passage without any query never comes to its negative
    negatives = sum(outcome.pairs > 0 for outcome in result.outcomes)
    assert llm.count + len(unasked) == 8 * 3 + negatives
    assert {failure.reason for failure in unasked} == {"not asked: the budget (max_cost of 0.004) is spent"}
    assert {outcome.document_id for outcome in result.outcomes} == {p.id for p in PASSAGES}


def test_a_larger_budget_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    first, second = Clerk(), Clerk()
    synthesize(PASSAGES, first, journal=tmp_path / "j", meter=Meter(Budget(max_requests=9)))
    result = synthesize(PASSAGES, second, journal=tmp_path / "j", meter=Meter(Budget(max_requests=100)))
    assert (first.count, second.count) == (9, 32 - 9)
    assert result.limit is None
    assert result.failures == []


def test_a_budget_counts_what_the_journal_of_earlier_runs_took(tmp_path: Path) -> None:
    synthesize(PASSAGES[:4], Clerk(), journal=tmp_path / "j")
    llm = Clerk()
    synthesize(PASSAGES, llm, journal=tmp_path / "j", meter=Meter(Budget(max_requests=20)))
    assert llm.count == 20 - 16


def test_a_failure_under_a_budget_gives_its_room_back(tmp_path: Path) -> None:
    class Failing(Clerk):
        def complete(self, request: Request) -> Completion:
            super().complete(request)
            raise LLMRequestError("no", reason="HTTP 404: no")

    llm = Failing()
    result = synthesize(PASSAGES, llm, journal=tmp_path / "j", meter=Meter(Budget(max_tokens=2500)))
    assert llm.count == 24  # each holds several hundred tokens while it is under way, and none after
    assert result.limit is None


def test_the_watcher_is_told_pace_tokens_cost_and_time_left(tmp_path: Path) -> None:
    seen: list[SynthesisProgress] = []
    meter = Meter(prices={"clerk": Prices(input=1000, output=1000)})
    synthesize(
        PASSAGES, Clerk(wait=0.005), journal=tmp_path / "j", concurrency=1, meter=meter, watch=seen.append
    )
    assert [one.done for one in seen] == list(range(1, 9))
    assert [one.asked for one in seen] == [4 * n for n in range(1, 9)]
    assert [one.tokens for one in seen] == [4 * 110 * n for n in range(1, 9)]
    assert seen[-1].cost == pytest.approx(32 * 0.11)
    assert all(one.rate > 0 for one in seen)
    assert seen[-1].eta_seconds == 0
    middle = seen[3]
    assert middle.eta_seconds == pytest.approx(4 / middle.rate)
    assert "1.8k tokens, cost 1.76" in middle.note()
