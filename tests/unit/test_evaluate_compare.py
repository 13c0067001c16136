from __future__ import annotations

import json

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.compare import compare, contradiction

QUERIES = [f"q{number}" for number in range(60)]


def scores(ndcg: float, recall: float = 0.5) -> dict[str, dict[str, float]]:
    """Scores that vary a little by query around the given means."""
    wobble = {query: (index % 3 - 1) * 0.01 for index, query in enumerate(QUERIES)}
    return {
        "ndcg@10": {query: ndcg + wobble[query] for query in QUERIES},
        "recall@10": dict.fromkeys(QUERIES, recall),
    }


def test_figures_are_means_and_differences_to_the_base() -> None:
    results = compare({"base": scores(0.5), "merged": scores(0.6, 0.7)})

    assert results.queries == 60
    merged = results.systems["merged"]
    assert merged.ndcg10 == pytest.approx(0.6)
    assert merged.recall10 == pytest.approx(0.7)
    assert merged.delta == pytest.approx(0.1)
    assert merged.ci95 == pytest.approx((0.1, 0.1))  # the wobble is shared, so it cancels out


def test_the_json_has_exactly_the_promised_keys_and_nulls_for_the_base() -> None:
    figures = json.loads(json.dumps(compare({"base": scores(0.5), "bm25": scores(0.4)}).figures()))

    assert list(figures) == ["systems"]
    assert figures["systems"]["base"] == {
        "ndcg@10": pytest.approx(0.5),
        "recall@10": 0.5,
        "delta": None,
        "ci95": None,
    }
    assert set(figures["systems"]["bm25"]) == {"ndcg@10", "recall@10", "delta", "ci95"}
    assert figures["systems"]["bm25"]["ci95"] == pytest.approx([-0.1, -0.1])


def test_queries_are_paired_by_id_whatever_their_order() -> None:
    turned = {metric: dict(reversed(values.items())) for metric, values in scores(0.6).items()}

    assert compare({"base": scores(0.5), "merged": turned}) == compare(
        {"base": scores(0.5), "merged": scores(0.6)}
    )


def test_an_interval_wholly_below_the_base_contradicts_the_choice() -> None:
    found = contradiction(compare({"base": scores(0.5), "merged": scores(0.45)}), "merged")

    assert found is not None
    assert found.exit_status == 3
    assert "merged is -5.00 nDCG@10 points against base on 60 test queries" in found.message


def test_an_interval_that_touches_zero_and_a_better_system_contradict_nothing() -> None:
    worse_by_luck = scores(0.5)
    worse_by_luck["ndcg@10"]["q0"] -= 0.4
    results = compare({"base": scores(0.5), "same": worse_by_luck, "merged": scores(0.6)})

    delta = results.systems["same"].delta
    assert delta is not None
    assert delta < 0
    assert contradiction(results, "same") is None
    assert contradiction(results, "merged") is None


def test_the_base_cannot_contradict_itself() -> None:
    assert contradiction(compare({"base": scores(0.5), "bm25": scores(0.9)}), "base") is None


def test_systems_scored_on_other_queries_are_refused() -> None:
    short = scores(0.6)
    del short["ndcg@10"]["q7"]

    with pytest.raises(DataError, match=r"merged and base .* 1 differ, for instance 'q7'"):
        compare({"base": scores(0.5), "merged": short})


def test_a_missing_base_a_missing_metric_and_an_unknown_shipped_system_are_refused() -> None:
    with pytest.raises(ConfigError, match="'base' is not among the systems: merged"):
        compare({"merged": scores(0.5)})
    with pytest.raises(ConfigError, match=r"base has no recall@10"):
        compare({"base": {"ndcg@10": {"q": 1.0}}})
    with pytest.raises(ConfigError, match="'merged' shipped but was not scored"):
        contradiction(compare({"base": scores(0.5)}), "merged")
