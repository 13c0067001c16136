from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.metrics import mean, ndcg_at_k, recall_at_k, score_run

GRADES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-1, 3), min_size=1)
RESULTS = st.dictionaries(st.sampled_from("abcdefghij"), st.floats(-1, 1, width=32))


def test_ndcg_takes_the_grade_as_gain_and_discounts_by_log2_of_the_rank() -> None:
    run = {"q": [("low", 0.9), ("unjudged", 0.8), ("high", 0.7)]}
    qrels = {"q": {"high": 3, "low": 1}}

    expected = (1 / math.log2(2) + 3 / math.log2(4)) / (3 / math.log2(2) + 1 / math.log2(3))

    assert ndcg_at_k(run, qrels, 10)["q"] == pytest.approx(expected)


def test_a_query_without_results_scores_zero_and_still_counts() -> None:
    qrels = {"found": {"a": 1}, "lost": {"a": 1}}
    run = {"found": [("a", 1.0)]}

    assert ndcg_at_k(run, qrels) == {"found": 1.0, "lost": 0.0}
    assert mean(recall_at_k(run, qrels)) == 0.5


def test_a_query_without_relevant_documents_scores_zero() -> None:
    assert score_run({"q": [("a", 1.0)]}, {"q": {"a": 0}}) == {"ndcg@10": {"q": 0.0}, "recall@10": {"q": 0.0}}


def test_queries_that_nobody_judged_are_left_out() -> None:
    assert list(ndcg_at_k({"q": [("a", 1.0)], "other": [("a", 1.0)]}, {"q": {"a": 1}})) == ["q"]


def test_ties_go_to_the_higher_document_id() -> None:
    run = {"q": [("a", 0.5), ("b", 0.5)]}

    assert ndcg_at_k(run, {"q": {"b": 1}}, 1)["q"] == 1.0
    assert ndcg_at_k(run, {"q": {"a": 1}}, 1)["q"] == 0.0


def test_the_order_of_a_run_does_not_matter_only_its_scores_do() -> None:
    assert ndcg_at_k({"q": [("bad", 0.1), ("good", 0.9)]}, {"q": {"good": 1}}, 1)["q"] == 1.0


def test_recall_divides_by_all_relevant_documents_also_beyond_k() -> None:
    qrels = {"q": {"a": 1, "b": 2, "c": 1, "d": 0}}

    assert recall_at_k({"q": [("a", 3.0), ("d", 2.0), ("b", 1.0)]}, qrels, 2)["q"] == pytest.approx(1 / 3)


@given(results=RESULTS, grades=GRADES, k=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_values_lie_between_zero_and_one(results: dict[str, float], grades: dict[str, int], k: int) -> None:
    run, qrels = {"q": list(results.items())}, {"q": grades}

    assert 0.0 <= ndcg_at_k(run, qrels, k)["q"] <= 1.0
    assert 0.0 <= recall_at_k(run, qrels, k)["q"] <= 1.0


@given(grades=GRADES, k=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_the_best_order_scores_one(grades: dict[str, int], k: int) -> None:
    run = {"q": [(document, float(grade)) for document, grade in grades.items()]}
    relevant = any(grade > 0 for grade in grades.values())

    assert ndcg_at_k(run, {"q": grades}, k)["q"] == pytest.approx(1.0 if relevant else 0.0)


@given(results=RESULTS, grades=GRADES, k=st.integers(1, 11))
@settings(max_examples=100, deadline=None)
def test_recall_never_falls_when_more_documents_count(
    results: dict[str, float], grades: dict[str, int], k: int
) -> None:
    run, qrels = {"q": list(results.items())}, {"q": grades}

    assert recall_at_k(run, qrels, k)["q"] <= recall_at_k(run, qrels, k + 1)["q"]


@given(results=RESULTS, grades=GRADES)
@settings(max_examples=100, deadline=None)
def test_only_the_ranks_matter_not_the_scale_of_the_scores(
    results: dict[str, float], grades: dict[str, int]
) -> None:
    run = {"q": list(results.items())}
    doubled = {"q": [(document, 2 * score) for document, score in results.items()]}

    assert ndcg_at_k(run, {"q": grades}) == ndcg_at_k(doubled, {"q": grades})


@given(results=RESULTS, grades=GRADES)
@settings(max_examples=100, deadline=None)
def test_moving_a_relevant_document_to_the_top_never_hurts(
    results: dict[str, float], grades: dict[str, int]
) -> None:
    best = max(grades, key=lambda document: grades[document])
    promoted = {"q": list((results | {best: 2.0}).items())}

    before = ndcg_at_k({"q": list(results.items())}, {"q": grades})["q"]
    assert ndcg_at_k(promoted, {"q": grades})["q"] >= before - 1e-12


def test_a_document_that_is_returned_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"'q'.*'a' is returned twice"):
        ndcg_at_k({"q": [("a", 1.0), ("a", 0.5)]}, {"q": {"a": 1}})


def test_a_score_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"document 'b' is not a number"):
        ndcg_at_k({"q": [("a", 1.0), ("b", math.nan)]}, {"q": {"a": 1}})


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        recall_at_k({}, {"q": {"a": 1}}, 0)


def test_a_mean_of_no_queries_is_refused() -> None:
    with pytest.raises(DataError, match="no judged queries"):
        mean({})
