"""Every measure beside its definition, written down here a second time in NumPy, on odd runs and judgements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stm_training.evaluate.measures import measure_run
from stm_training.evaluate.metrics import ndcg_at_k, recall_at_k
from tests.comparison.test_metrics_against_trec_eval import Judgements, Runs, random_collection

pytest.importorskip("pytrec_eval", reason="pytrec_eval has no wheel for this platform")

Ranking = np.ndarray  # grades of the documents in ranked order; -9 where nobody judged
UNJUDGED = -9


def ranked_grades(results: list[tuple[str, float]], judged: dict[str, int]) -> Ranking:
    """By score in single precision, then by id, both descending."""
    ids = np.array([name for name, _ in results], dtype=object)
    scores = np.array([score for _, score in results], dtype=np.float32)
    by_id = sorted(range(len(ids)), key=lambda row: ids[row], reverse=True)
    order = [by_id[row] for row in np.argsort(-scores[by_id], kind="stable")]
    return np.array([judged.get(ids[row], UNJUDGED) for row in order], dtype=float)


def ndcg(grades: Ranking, judged: np.ndarray, k: int) -> float:
    discount = 1 / np.log2(np.arange(k) + 2)
    gains, best = np.zeros(k), np.zeros(k)
    top, ideal = np.maximum(grades, 0)[:k], np.sort(np.maximum(judged, 0))[::-1][:k]
    gains[: len(top)], best[: len(ideal)] = top, ideal
    return float(gains @ discount / (best @ discount)) if best.any() else 0.0


def recall(grades: Ranking, judged: np.ndarray, k: int) -> float:
    relevant = (judged > 0).sum()
    return float((grades[:k] > 0).sum() / relevant) if relevant else 0.0


def precision(grades: Ranking, judged: np.ndarray, k: int) -> float:
    return float((grades[:k] > 0).sum() / k)


def average_precision(grades: Ranking, judged: np.ndarray, k: int) -> float:
    hits = (grades[:k] > 0).astype(float)
    relevant = (judged > 0).sum()
    precisions = np.cumsum(hits) / (np.arange(len(hits)) + 1)
    return float((precisions * hits).sum() / relevant) if relevant else 0.0


def reciprocal_rank(grades: Ranking, judged: np.ndarray, k: int) -> float:
    found = np.flatnonzero(grades[:k] > 0)
    return 1 / (int(found[0]) + 1) if len(found) else 0.0


def success(grades: Ranking, judged: np.ndarray, k: int) -> float:
    return float((grades[:k] > 0).any())


def share_judged(grades: Ranking, judged: np.ndarray, k: int) -> float:
    return float((grades[:k] != UNJUDGED).mean()) if len(grades) else 0.0


DEFINITIONS: dict[str, Callable[[Ranking, np.ndarray, int], float]] = {
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "success": success,
    "judged": share_judged,
}


def odd_collection(seed: int) -> tuple[Runs, Judgements]:
    """Ties, graded and negative judgements, a query without results, one that the run does not know."""
    run, qrels = random_collection(seed, queries=25)
    run["q0"] = []
    del run["q1"]
    run["q2"] = run["q2"][:3]  # fewer than k
    run["unjudged"] = [("d1", 1.0)]
    return run, qrels


@pytest.mark.parametrize("k", [1, 5, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_every_measure_is_what_its_definition_says_for_every_query(seed: int, k: int) -> None:
    run, qrels = odd_collection(seed)

    found = measure_run(run, qrels, [f"{name}@{k}" for name in DEFINITIONS])

    for name, definition in DEFINITIONS.items():
        assert list(found[f"{name}@{k}"]) == list(qrels)
        for query, judged in qrels.items():
            grades = ranked_grades(run.get(query, []), judged)
            expected = definition(grades, np.array(list(judged.values())), k)
            assert found[f"{name}@{k}"][query] == pytest.approx(expected, abs=1e-12), (name, query)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_cut_the_whole_run_counts(seed: int) -> None:
    run, qrels = odd_collection(seed)

    found = measure_run(run, qrels, ["ndcg", "map", "mrr", "rprec"])

    for query, judged in qrels.items():
        grades, values = ranked_grades(run.get(query, []), judged), np.array(list(judged.values()))
        relevant = int((values > 0).sum())
        assert found["ndcg"][query] == pytest.approx(ndcg(grades, values, 1000), abs=1e-12)
        assert found["map"][query] == pytest.approx(average_precision(grades, values, 1000), abs=1e-12)
        assert found["mrr"][query] == pytest.approx(reciprocal_rank(grades, values, 1000), abs=1e-12)
        expected = precision(grades, values, relevant) if relevant else 0.0
        assert found["rprec"][query] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_judged_only_scores_the_run_as_if_nobody_had_returned_the_others(seed: int) -> None:
    run, qrels = odd_collection(seed)
    condensed = {
        query: [hit for hit in results if hit[0] in qrels.get(query, {})] for query, results in run.items()
    }
    measures = ["ndcg@10", "recall@10", "map@100", "mrr@10", "precision@5"]

    found = measure_run(run, qrels, [*measures, "judged@10"], judged_only=True)

    expected = measure_run(condensed, qrels, measures)
    # trec_eval takes a judgement below 0 for none, so the two can differ only on queries that have one.
    clean = [query for query, judged in qrels.items() if min(judged.values()) >= 0]
    assert len(clean) >= 3
    for measure in measures:
        for query in clean:
            assert found[measure][query] == pytest.approx(expected[measure][query], abs=1e-12)
    assert found["judged@10"] == measure_run(run, qrels, ["judged@10"])["judged@10"]


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_of_the_inner_loop_are_the_librarys(seed: int, k: int) -> None:
    run, qrels = odd_collection(seed)

    library = measure_run(run, qrels, [f"ndcg@{k}", f"recall@{k}"])

    assert ndcg_at_k(run, qrels, k) == pytest.approx(library[f"ndcg@{k}"], abs=1e-12)
    assert recall_at_k(run, qrels, k) == pytest.approx(library[f"recall@{k}"], abs=1e-12)
