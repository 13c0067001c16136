"""Our metrics beside trec_eval's own code (through pytrec_eval) on random runs with ties and odd grades."""

from __future__ import annotations

import random

import pytest

from stm_training.evaluate.metrics import ndcg_at_k, recall_at_k

pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec_eval has no wheel for this platform")

Runs = dict[str, list[tuple[str, float]]]
Judgements = dict[str, dict[str, int]]


def random_collection(seed: int, queries: int = 60) -> tuple[Runs, Judgements]:
    """Runs with many ties, unjudged documents, negative grades, and queries without relevant documents."""
    rng = random.Random(seed)
    documents = [f"d{number}" for number in range(40)] + ["Ä", "é1", "zz", "10", "9"]
    run: Runs = {}
    qrels: Judgements = {}
    for number in range(queries):
        query = f"q{number}"
        judged = rng.sample(documents, rng.randint(1, 25))
        qrels[query] = {document: rng.choice([-1, 0, 0, 1, 1, 2, 3]) for document in judged}
        found = rng.sample(documents, rng.randint(1, len(documents)))
        run[query] = [
            (document, rng.choice([0.5, 0.5, 1.0, rng.random(), -rng.random()])) for document in found
        ]
    return run, qrels


@pytest.mark.parametrize("k", [1, 3, 10, 100])
@pytest.mark.parametrize("seed", range(5))
def test_every_query_has_the_value_that_trec_eval_gives(seed: int, k: int) -> None:
    run, qrels = random_collection(seed)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{k}", f"recall.{k}"})
    expected = evaluator.evaluate({query: dict(results) for query, results in run.items()})

    ndcg, recall = ndcg_at_k(run, qrels, k), recall_at_k(run, qrels, k)

    assert len(expected) == len(qrels)
    for query, values in expected.items():
        assert ndcg[query] == pytest.approx(values[f"ndcg_cut_{k}"], abs=1e-12)
        assert recall[query] == pytest.approx(values[f"recall_{k}"], abs=1e-12)


def test_scores_that_single_precision_cannot_tell_apart_are_ties_as_in_trec_eval() -> None:
    run = {"q": [("a", 1.0), ("b", 1.0 + 1e-12), ("c", 1.0 + 1e-9)]}
    qrels = {"q": {"a": 2, "b": 1, "c": 0}}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.2"})
    expected = evaluator.evaluate({"q": dict(run["q"])})["q"]["ndcg_cut_2"]

    assert ndcg_at_k(run, qrels, 2)["q"] == pytest.approx(expected, abs=1e-12)
    assert expected < 0.5  # the tie is broken by id, against the order of the scores
