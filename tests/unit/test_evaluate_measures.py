from __future__ import annotations

import math
import platform
import sys

import pytest

from stm_retriever.errors import ConfigError, DataError, MissingExtraError
from stm_training.evaluate.measures import DEFAULT_MEASURES, measure_run, parse_measure

pytest.importorskip("pytrec_eval", reason="pytrec_eval has no wheel for this platform")


def test_the_default_measures_are_given_per_query_and_a_query_without_results_scores_zero() -> None:
    found = measure_run({"q": [("a", 1.0)]}, {"q": {"a": 2}, "lost": {"a": 1}})

    assert tuple(found) == DEFAULT_MEASURES
    assert found["ndcg@10"] == found["mrr@10"] == found["map@100"] == {"q": 1.0, "lost": 0.0}
    assert found["precision@10"] == {"q": 0.1, "lost": 0.0}


def test_mrr_is_cut_at_k_exactly() -> None:
    run = {"q": [(f"d{number}", -float(number)) for number in range(1, 12)]}

    assert measure_run(run, {"q": {"d10": 1}}, ["mrr@10"])["mrr@10"]["q"] == pytest.approx(0.1)
    assert measure_run(run, {"q": {"d11": 1}}, ["mrr@10"])["mrr@10"]["q"] == 0.0


def test_documents_that_nobody_judged_can_be_left_out() -> None:
    run = {"q": [("new", 3.0), ("bad", 2.0), ("good", 1.0)]}
    qrels = {"q": {"good": 1, "bad": 0}}

    assert measure_run(run, qrels, ["mrr@10"])["mrr@10"]["q"] == pytest.approx(1 / 3)
    assert measure_run(run, qrels, ["mrr@10"], judged_only=True)["mrr@10"]["q"] == pytest.approx(1 / 2)
    assert measure_run(run, qrels, ["judged@2"], judged_only=True)["judged@2"]["q"] == 0.5


def test_names_are_read_whatever_their_case() -> None:
    assert parse_measure("nDCG@10").name == "ndcg@10"
    assert (parse_measure("map").cut, parse_measure("map@5").cut) == (None, 5)


@pytest.mark.parametrize("name", ["", "ndcg@0", "ndgc@10", "recall", "bpref@10", "mrr@x", "ndcg@10 mrr"])
def test_a_measure_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no measure .*ndcg@k.*bpref"):
        parse_measure(name)


@pytest.mark.parametrize(
    ("machine", "remedy"),
    [("x86_64", r"stm-retriever\[train\]"), ("aarch64", "pip install pytrec-eval-terrier")],
)
def test_without_the_library_the_remedy_is_one_that_works_on_this_machine(
    machine: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)

    with pytest.raises(MissingExtraError, match=remedy):
        measure_run({}, {"q": {"a": 1}})
    assert measure_run({}, {"q": {"a": 1}}, ["judged@10"]) == {"judged@10": {"q": 0.0}}


def test_runs_that_cannot_be_scored_are_refused() -> None:
    qrels = {"q": {"a": 1}}
    with pytest.raises(DataError, match="'a' is returned twice"):
        measure_run({"q": [("a", 1.0), ("a", 0.5)]}, qrels)
    with pytest.raises(DataError, match="not a number"):
        measure_run({"q": [("a", math.nan)]}, qrels)
    with pytest.raises(DataError, match="no query has judgements"):
        measure_run({}, {})
