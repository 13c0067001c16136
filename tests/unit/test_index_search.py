"""Searching: scores, ties, k, parents, vectors, async, threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pytest

from stm_retriever import ConfigError, DataError, Document, Retriever
from stm_retriever.index.ranking import exact_top
from stm_retriever.index.vectors import Labels, VectorIndex, Vectors
from tests.tiny_retriever import WORDS

DOCUMENTS = [
    Document(id=f"d{number}", text=f"{word} {WORDS[7 * number % 60]} {number}", metadata={"number": number})
    for number, word in enumerate(WORDS[20:60], start=1)
]


@pytest.fixture
def filled(empty_retriever: Retriever) -> Retriever:
    empty_retriever.add(DOCUMENTS)
    return empty_retriever


def test_hits_are_the_true_nearest_with_cosine_scores(filled: Retriever) -> None:
    query = filled.embedder.encode_query(["apple tree"])[0].astype(np.float64)
    vectors = filled.embedder.encode_document([document.text for document in DOCUMENTS]).astype(np.float64)
    cosine = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    expected = [DOCUMENTS[place].id for place in np.argsort(-cosine)[:7]]
    hits = filled.search("apple tree", k=7)
    assert [hit.id for hit in hits] == expected
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosine, reverse=True)[:7], abs=1e-6)
    assert all(type(hit.score) is float for hit in hits)
    by_id = {document.id: document for document in DOCUMENTS}
    for hit in hits:
        assert (hit.text, hit.metadata) == (by_id[hit.id].text, by_id[hit.id].metadata)


def test_queries_are_encoded_as_queries_and_documents_as_documents(filled: Retriever) -> None:
    text = DOCUMENTS[3].text
    assert filled.search(text, k=1)[0].score < 0.999
    as_document = filled.embedder.encode_document([text])[0]
    assert filled.search_vector(as_document, k=1)[0].score == pytest.approx(1, abs=1e-6)


def test_equal_texts_rank_by_insertion_however_many_there_are(empty_retriever: Retriever) -> None:
    ids = [f"n{number}" for number in range(100)][::-1]
    empty_retriever.add([Document(id=name, text="red apple") for name in ids])
    empty_retriever.add([Document(id="other", text="sea")])
    for k in (1, 5, 40, 100):
        hits = empty_retriever.search("red apple", k=k)
        assert [hit.id for hit in hits] == ids[:k]
        assert len({hit.score for hit in hits}) == 1


class BackwardIndex:
    """Ranks equal vectors last to first, as other kinds of index may."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    candidates_factor = 1

    def search(self, queries: Vectors, k: int, *, allowed: Labels | None = None) -> list[Labels]:
        scores = queries @ self._vectors.T
        return [np.lexsort((-np.arange(len(self)), -row))[:k] for row in scores]

    def reconstruct(self, labels: Labels) -> Vectors:
        return self._vectors[labels]


def test_ties_go_by_insertion_whatever_the_vector_index_prefers() -> None:
    vectors = np.zeros((200, 4), np.float32)
    vectors[:, 0] = 1
    vectors[7] = [0.6, 0.8, 0, 0]
    query = np.array([[0.8, 0.6, 0, 0], [1, 0, 0, 0]], np.float32)
    index = cast(VectorIndex, BackwardIndex(vectors))
    first, second = exact_top(index, query, 3, stored=lambda labels: None)
    assert [label for label, _ in first] == [7, 0, 1]
    assert [score for _, score in first] == pytest.approx([0.96, 0.8, 0.8])
    assert [label for label, _ in second] == [0, 1, 2]


def test_a_replaced_document_counts_as_inserted_anew(empty_retriever: Retriever) -> None:
    empty_retriever.add([Document(id=name, text="red apple") for name in "abc"])
    empty_retriever.add([Document(id="a", text="red apple", metadata={"new": True})])
    assert [hit.id for hit in empty_retriever.search("apple")] == ["b", "c", "a"]


def test_k_beyond_the_index_gives_all_and_an_empty_index_nothing(
    filled: Retriever, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(filled.search("apple", k=1000)) == len(DOCUMENTS)
    assert filled.search("apple", k=np.int64(3)) == filled.search("apple", k=3)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("empty") / "index"
    with Retriever.create(path, embedder=filled.embedder) as empty:
        assert empty.search("apple") == []
        assert empty.search("apple", group_by_parent=True) == []
        assert empty.search_batch(["apple", "pear"]) == [[], []]


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", None, True])
def test_a_k_that_is_no_positive_number_is_an_error(filled: Retriever, k: object) -> None:
    with pytest.raises(ConfigError, match=r"k="):
        filled.search("apple", k=k)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"k="):
        filled.search_batch(["apple"], k=k)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"k="):
        filled.search_vector(np.ones(filled.embedder.dimension), k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "  \n\t", "\ud83d", None, 7])
def test_a_query_that_is_no_text_is_an_error(filled: Retriever, query: object) -> None:
    with pytest.raises(DataError, match="query text number 0"):
        filled.search(query)  # type: ignore[arg-type]


def test_a_batch_gives_what_single_searches_give(filled: Retriever) -> None:
    queries = ["apple tree", "heart pain", "the sea at night", "apple tree"] * 8
    batch = filled.search_batch(queries, k=4)
    assert len(batch) == len(queries)
    for query, hits in zip(queries, batch, strict=True):
        single = filled.search(query, k=4)
        assert [hit.id for hit in hits] == [hit.id for hit in single]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in single], abs=1e-6)
    assert filled.search_batch([]) == []
    with pytest.raises(ConfigError, match="single string"):
        filled.search_batch("apple")


def test_a_vector_gives_what_its_query_gives_whatever_its_length(filled: Retriever) -> None:
    vector = filled.embedder.encode_query(["apple"])[0]
    expected = filled.search("apple", k=3)
    assert filled.search_vector(vector, k=3) == expected
    assert filled.search_vector(vector.tolist(), k=3) == expected
    assert [hit.id for hit in filled.search_vector(vector * 7, k=3)] == [hit.id for hit in expected]


def test_vectors_of_another_shape_or_without_direction_are_errors(filled: Retriever) -> None:
    dimension = filled.embedder.dimension
    with pytest.raises(ConfigError, match=rf"shape \(1, {dimension + 1}\).*\(1, {dimension}\)"):
        filled.search_vector(np.ones(dimension + 1))
    with pytest.raises(ConfigError, match="Pass row by row"):
        filled.search_vector(np.ones((1, dimension)))
    for bad in (0.0, math.nan, math.inf):
        with pytest.raises(DataError, match="zero or not finite"):
            filled.search_vector(np.full(dimension, bad))


def test_parents_are_grouped_by_their_best_part(empty_retriever: Retriever) -> None:
    parts = [
        Document(id=f"{parent}-{number}", text=text, parent_id=parent, start=number * 10, end=number * 10 + 9)
        for parent, texts in {"p": ["red apple"] * 30, "q": ["red apple tree", "sea"]}.items()
        for number, text in enumerate(texts)
    ]
    empty_retriever.add([*parts, Document(id="alone", text="red river")])
    assert {hit.parent_id for hit in empty_retriever.search("red apple", k=3)} == {"p"}
    hits = empty_retriever.search("red apple", k=3, group_by_parent=True)
    assert [hit.id for hit in hits] == ["p-0", "q-0", "alone"]
    assert (hits[1].parent_id, hits[1].start, hits[1].end) == ("q", 0, 9)
    vector = empty_retriever.embedder.encode_query(["red apple"])[0]
    assert empty_retriever.search_vector(vector, 3, group_by_parent=True) == hits
    assert [hit.id for hit in empty_retriever.search_batch(["red apple"], 2, group_by_parent=True)[0]] == [
        "p-0",
        "q-0",
    ]


def test_a_callers_change_of_a_hit_stays_the_callers(filled: Retriever) -> None:
    filled.search("apple", k=1)[0].metadata["number"] = "changed"
    assert isinstance(filled.search("apple", k=1)[0].metadata["number"], int)


async def test_async_search_gives_the_same(filled: Retriever) -> None:
    assert await filled.asearch("apple", k=3) == filled.search("apple", k=3)


def test_threads_search_while_one_adds(filled: Retriever) -> None:
    expected = [hit.id for hit in filled.search("apple tree", k=3)]

    def work(number: int) -> list[str]:
        if number % 4 == 0:
            filled.add([Document(id=f"new{number}", text="zebra")])
        return [hit.id for hit in filled.search("apple tree", k=3)]

    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(work, range(40)))
    assert filled.count() == len(DOCUMENTS) + 10
