from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate import ranking
from stm_training.evaluate.ranking import rank, top_columns


def vectors(rows: int, seed: int = 0, dimension: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_the_ranking_is_that_of_sorting_every_dot_product() -> None:
    queries, documents = vectors(7, 1), vectors(50, 2)

    run = rank(queries, documents, query_ids=ids("q", 7), doc_ids=ids("d", 50), k=10)

    for row, query in enumerate(ids("q", 7)):
        scores = documents @ queries[row]
        assert [name for name, _ in run[query]] == [f"d{index}" for index in np.argsort(-scores)[:10]]
        assert [score for _, score in run[query]] == pytest.approx(
            np.sort(scores)[::-1][:10].tolist(), abs=1e-5
        )


def test_blocks_do_not_change_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = vectors(9, 1), vectors(30, 2)

    def ranked() -> dict[str, list[str]]:
        run = rank(queries, documents, query_ids=ids("q", 9), doc_ids=ids("d", 30), k=5)
        return {query: [name for name, _ in results] for query, results in run.items()}

    whole = ranked()
    monkeypatch.setattr(ranking, "_SCORES_PER_BLOCK", 60)  # two queries at a time

    assert ranked() == whole


def test_ties_are_cut_by_descending_id_also_at_the_border() -> None:
    documents = np.ones((6, 2), dtype=np.float32)
    documents[3] = 2.0

    run = rank(
        np.ones((1, 2), dtype=np.float32),
        documents,
        query_ids=["q"],
        doc_ids=["b", "f", "a", "top", "e", "c"],
        k=3,
    )

    assert [name for name, _ in run["q"]] == ["top", "f", "e"]


def test_the_querys_own_document_is_dropped_only_on_request() -> None:
    same = vectors(5)
    names = ids("argument", 5)

    kept = rank(same, same, query_ids=names, doc_ids=names, k=5)
    dropped = rank(same, same, query_ids=names, doc_ids=names, k=5, exclude_self=True)

    for name in names:
        assert name in [document for document, _ in kept[name]]
        assert name not in [document for document, _ in dropped[name]]
        assert len(dropped[name]) == 4


def test_dropping_the_own_document_leaves_k_others() -> None:
    same = vectors(5)

    run = rank(same, same, query_ids=ids("a", 5), doc_ids=ids("a", 5), k=3, exclude_self=True)

    assert all(len(results) == 3 for results in run.values())


def test_a_corpus_smaller_than_k_comes_back_whole() -> None:
    run = rank(vectors(2), vectors(3), query_ids=["x", "y"], doc_ids=["a", "b", "c"], k=10)

    assert all({name for name, _ in results} == {"a", "b", "c"} for results in run.values())


def test_the_callers_vectors_stay_as_they_were() -> None:
    same = vectors(4)
    before = same.copy()

    rank(same, same, query_ids=ids("a", 4), doc_ids=ids("a", 4), k=2, exclude_self=True)

    assert np.array_equal(same, before)


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    k=st.integers(1, 45),
)
@settings(max_examples=200, deadline=None)
def test_top_columns_equals_a_stable_sort(scores: list[float], k: int) -> None:
    row = np.array(scores, dtype=np.float32)

    assert top_columns(row, k).tolist() == sorted(range(len(row)), key=lambda index: (-row[index], index))[:k]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"doc_ids": ["a", "b"]}, "3 document vectors came with 2 ids"),
        ({"doc_vectors": np.ones((3, 5), dtype=np.float32)}, r"\(1, 4\).*\(3, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "query_vectors": np.ones((1, 4), dtype=np.float32),
        "doc_vectors": np.ones((3, 4), dtype=np.float32),
        "query_ids": ["q"],
        "doc_ids": ["a", "b", "c"],
        "k": 2,
    }
    with pytest.raises(ConfigError, match=message):
        rank(**(arguments | change))


def test_a_repeated_id_and_a_vector_with_nan_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="document id 'a' is there twice"):
        rank(vectors(1), vectors(2), query_ids=["q"], doc_ids=["a", "a"])
    broken = vectors(2)
    broken[1, 3] = np.nan
    with pytest.raises(DataError, match=r"1 document vectors are not finite.*'b'"):
        rank(vectors(1), broken, query_ids=["q"], doc_ids=["a", "b"])
