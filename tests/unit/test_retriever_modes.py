"""The Retriever's ways to search: filters, words, both, rerankers, thresholds, batches, MMR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.vectorstores.utils import maximal_marginal_relevance as langchains

from stm_retriever import ConfigError, DataError, Document, Embedder, Hit, Retriever
from stm_retriever.fusion import reciprocal_ranks, weighted_scores
from stm_retriever.rerank import CrossEncoder
from stm_retriever.searching import relevance
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat
from tests.tiny_cross_encoder import make_tiny_cross_encoder

QUERY = "red apple"
DOCUMENTS = [
    Document(id="apple", text="a red apple", metadata={"year": 2020, "kind": "fruit"}),
    Document(id="apples", text="red apple apple apple", metadata={"year": 2021, "kind": "fruit"}),
    Document(id="pear", text="a green pear", metadata={"year": 2022, "kind": "fruit"}),
    Document(id="train", text="the red train", metadata={"year": 2020, "kind": "thing"}, parent_id="p"),
    Document(id="car", text="the blue car", metadata={"year": 2021, "kind": "thing"}, parent_id="p"),
    Document(id="snow", text="snow in winter on the mountain", metadata={"year": 2022}),
]


@pytest.fixture
def retriever(tmp_path: Path, tiny_embedder: Embedder) -> Iterator[Retriever]:
    with Retriever.create(tmp_path / "searched", embedder=tiny_embedder) as opened:
        opened.add(DOCUMENTS)
        yield opened


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def by_id(hits: Sequence[Hit]) -> dict[str, float]:
    return {hit.id: hit.score for hit in hits}


# Modes ----------------------------------------------------------------------------------------------------


def test_dense_scores_are_cosines(retriever: Retriever, tiny_embedder: Embedder) -> None:
    query = tiny_embedder.encode_query([QUERY])[0]
    vectors = tiny_embedder.encode_document([document.text for document in DOCUMENTS])
    expected = {document.id: float(row @ query) for document, row in zip(DOCUMENTS, vectors, strict=True)}
    assert by_id(retriever.search(QUERY, k=10)) == pytest.approx(expected, abs=1e-6)


def test_lexical_finds_words_and_nothing_else(retriever: Retriever) -> None:
    assert set(ids(retriever.search("apple", mode="lexical"))) == {"apple", "apples"}
    assert retriever.search("zebra", mode="lexical") == []


def test_lexical_search_encodes_nothing(tmp_path: Path, tiny_onnx_retriever: Path) -> None:
    embedder = Embedder.load(tiny_onnx_retriever, threads=1)
    with Retriever.create(tmp_path / "index", embedder=embedder) as retriever:
        retriever.add(DOCUMENTS)
        embedder.encode_query = None  # type: ignore[method-assign,assignment]
        assert ids(retriever.search("snow", mode="lexical")) == ["snow"]


def test_hybrid_is_the_reciprocal_rank_fusion_of_the_two(retriever: Retriever) -> None:
    dense, words = retriever.search(QUERY, 50), retriever.search(QUERY, 50, mode="lexical")
    assert by_id(retriever.search(QUERY, mode="hybrid")) == pytest.approx(
        reciprocal_ranks([ids(dense), ids(words)])
    )
    first = retriever.search(QUERY, 1, mode="hybrid")[0]
    assert first == retriever.search(QUERY, 6, mode="hybrid")[0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hybrid_by_weights_is_their_weighted_sum(retriever: Retriever, alpha: float) -> None:
    dense = by_id(retriever.search(QUERY, 50))
    words = by_id(retriever.search(QUERY, 50, mode="lexical"))
    found = retriever.search(QUERY, mode="hybrid", fusion="weighted", alpha=alpha)
    assert by_id(found) == pytest.approx(weighted_scores(dense, words, alpha=alpha), abs=1e-6)


def test_what_only_the_words_found_gets_its_true_cosine(tmp_path: Path, tiny_embedder: Embedder) -> None:
    filler = [Document(id=f"n{n}", text=f"red apple fish {'red ' * (n % 3)}") for n in range(80)]
    rare = Document(id="rare", text="music river sea night snow summer cherry")
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        retriever.add([*filler, rare])
        query = "red apple fish cherry"
        assert "rare" not in ids(retriever.search(query, 50))
        cosine = by_id(retriever.search(query, 81))["rare"]
        top = retriever.search(query, 1)[0].score
        words = by_id(retriever.search(query, 50, mode="lexical"))
        found = by_id(retriever.search(query, 81, mode="hybrid", fusion="weighted", alpha=1.0, fetch_k=50))
        assert "rare" in words
        assert found["rare"] == pytest.approx((cosine + 1) / (top + 1), abs=1e-5)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_filter_holds_in_every_mode(retriever: Retriever, mode: Any) -> None:
    where = {"year": {"$gte": 2021}, "kind": "fruit"}
    found = set(ids(retriever.search(QUERY, where=where, mode=mode)))
    assert found <= {"apples", "pear"}
    assert "apples" in found
    assert retriever.count(where=where) == 2
    assert {document.id for document in retriever.documents(where=where)} == {"apples", "pear"}


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_batch_gives_what_each_query_gives(retriever: Retriever, mode: Any) -> None:
    queries = ["red apple", "green pear", "snow", "red apple"]
    options: dict[str, Any] = {"mode": mode, "where": {"year": {"$lte": 2022}}}
    batch = retriever.search_batch(queries, 3, **options)
    assert [ids(hits) for hits in batch] == [ids(retriever.search(query, 3, **options)) for query in queries]
    assert retriever.search_batch([], 3) == []


def test_a_vector_with_its_text_searches_like_the_text(retriever: Retriever, tiny_embedder: Embedder) -> None:
    vector = tiny_embedder.encode_query([QUERY])[0]
    options: dict[str, Any]
    for options in ({}, {"mode": "hybrid"}, {"rerank": by_length}):
        assert retriever.search_vector(vector, 3, text=QUERY, **options) == retriever.search(
            QUERY, 3, **options
        )
    longer = retriever.search_vector(vector * 3, 6)
    assert by_id(longer) == pytest.approx(by_id(retriever.search(QUERY, 6)), abs=1e-6)
    for options in ({"mode": "hybrid"}, {"mode": "lexical"}, {"rerank": by_length}):
        with pytest.raises(ConfigError, match="text="):
            retriever.search_vector(vector, 3, **options)


# Rerankers and thresholds ---------------------------------------------------------------------------------


def by_length(query: str, texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_a_reranker_orders_the_candidates_anew(retriever: Retriever) -> None:
    found = retriever.search(QUERY, 3, rerank=by_length)
    expected = sorted(DOCUMENTS, key=lambda document: -len(document.text))[:3]
    assert ids(found) == [document.id for document in expected]
    assert [hit.score for hit in found] == [len(document.text) for document in expected]


def test_only_so_many_candidates_are_reranked(retriever: Retriever) -> None:
    read: list[str] = []

    def rerank(query: str, texts: Sequence[str]) -> list[float]:
        read.extend(texts)
        return [0.0] * len(texts)

    first = retriever.search(QUERY, 3)
    assert ids(retriever.search(QUERY, 2, rerank=rerank, fetch_k=3)) == ids(first)[:2]
    assert read == [hit.text for hit in first]


def test_a_cross_encoder_folder_reranks(retriever: Retriever, tmp_path: Path) -> None:
    reranker = CrossEncoder.load(make_tiny_cross_encoder(tmp_path / "reranker"), threads=1)
    found = retriever.search(QUERY, 2, rerank=reranker)
    assert ids(found) == ["apples", "apple"]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert retriever.search("zebra", mode="lexical", rerank=reranker) == []


def test_a_least_score_leaves_out_what_is_below(retriever: Retriever) -> None:
    scores = [hit.score for hit in retriever.search(QUERY)]
    assert [hit.score for hit in retriever.search(QUERY, min_score=scores[2])] == scores[:3]
    assert retriever.search(QUERY, min_score=2.0) == []
    assert len(retriever.search(QUERY, rerank=by_length, min_score=len("the red train"))) == 3


def test_one_hit_per_parent_in_every_mode(retriever: Retriever) -> None:
    for mode in ("dense", "hybrid"):
        found = ids(retriever.search("the red train", mode=mode, group_by_parent=True))  # type: ignore[arg-type]
        assert len(found) == 5
        assert "train" in found and "car" not in found
    assert len(retriever.search("the", mode="lexical", group_by_parent=True)) <= 2
    (batch,) = retriever.search_batch(["the red train"], group_by_parent=True, rerank=by_length)
    assert len({"train", "car"} & set(ids(batch))) == 1


def test_grouping_looks_deeper_until_there_are_enough(tmp_path: Path, tiny_embedder: Embedder) -> None:
    parts = [Document(id=f"part{n}", text="a red apple", parent_id="long") for n in range(60)]
    others = [Document(id=name, text=name) for name in ("pear", "snow")]
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        retriever.add([*parts, *others])
        assert set(ids(retriever.search("a red apple", 3, group_by_parent=True))) == {"part0", "pear", "snow"}


def test_relevance_is_half_of_one_plus_the_cosine() -> None:
    assert [relevance(cosine) for cosine in (-1.0, 0.0, 0.5, 1.0)] == [0.0, 0.5, 0.75, 1.0]
    assert (relevance(1.0000001), relevance(-1.0000001)) == (1.0, 0.0)


# MMR ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lambda_mult", [0.0, 0.4, 1.0])
def test_mmr_is_langchains_over_the_nearest(
    retriever: Retriever, tiny_embedder: Embedder, lambda_mult: float
) -> None:
    query = tiny_embedder.encode_query([QUERY])[0]
    nearest = retriever.search(QUERY, 5)
    vectors = retriever.vectors_of(ids(nearest))
    chosen = langchains(query, vectors.tolist(), lambda_mult=lambda_mult, k=3)
    found = retriever.mmr_search(QUERY, 3, fetch_k=5, lambda_mult=lambda_mult)
    assert found == [nearest[place] for place in chosen]
    assert retriever.mmr_search_vector(query, 3, fetch_k=5, lambda_mult=lambda_mult) == found


def test_mmr_takes_a_filter_and_an_empty_index(retriever: Retriever, empty_retriever: Retriever) -> None:
    assert set(ids(retriever.mmr_search(QUERY, 9, where={"kind": "fruit"}))) == {"apple", "apples", "pear"}
    assert empty_retriever.mmr_search(QUERY) == []


# Adding again, deleting by filter -------------------------------------------------------------------------


def test_adding_the_same_again_encodes_and_writes_nothing(retriever: Retriever) -> None:
    encoded: list[str] = []
    encode = retriever.embedder.encode_document

    def counted(texts: Sequence[str], **options: Any) -> Any:
        encoded.extend(texts)
        return encode(texts, **options)

    retriever.embedder.encode_document = counted  # type: ignore[method-assign,assignment]
    try:
        changed = Document(id="pear", text="a green pear", metadata={"year": 1999})
        assert retriever.add([*DOCUMENTS[:2], changed, *DOCUMENTS[3:]]) == 6
        assert encoded == ["a green pear"]
        assert retriever.get(["pear"]) == [changed]
        assert [document.id for document in retriever.documents()][-1] == "pear"
    finally:
        del retriever.embedder.encode_document


def test_documents_can_be_deleted_by_a_filter(retriever: Retriever) -> None:
    assert retriever.delete_where({"kind": "fruit"}) == 3
    assert set(ids(retriever.search(QUERY))) == {"train", "car", "snow"}
    with pytest.raises(ConfigError, match="every document"):
        retriever.delete_where({})
    assert retriever.clear() == 3
    assert len(retriever) == 0


# Asynchronous twins ---------------------------------------------------------------------------------------


async def test_asynchronous_methods_do_what_the_others_do(
    retriever: Retriever, tiny_embedder: Embedder
) -> None:
    vector = tiny_embedder.encode_query([QUERY])[0]
    assert await retriever.asearch(QUERY, 3, mode="hybrid") == retriever.search(QUERY, 3, mode="hybrid")
    assert await retriever.asearch_batch([QUERY, "snow"], 2) == retriever.search_batch([QUERY, "snow"], 2)
    assert await retriever.asearch_vector(vector, 2) == retriever.search_vector(vector, 2)
    assert await retriever.ammr_search(QUERY, 2) == retriever.mmr_search(QUERY, 2)
    assert await retriever.aadd([Document(id="new", text="bread")]) == 1
    assert await retriever.adelete(["new"]) == 1


async def test_the_event_loop_goes_on_while_documents_are_added(
    tmp_path: Path, tiny_onnx_retriever: Path
) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    with Retriever.create(tmp_path / "index", embedder=embedder) as retriever:
        assert await finishes_beside_a_heartbeat(embedder, retriever.aadd(DOCUMENTS)) == 6


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "semantic"}, "'dense', 'lexical' or 'hybrid'"),
        ({"fusion": "sum"}, "'rrf' or 'weighted'"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"min_score": float("nan")}, "min_score"),
        ({"rerank": "bge"}, "cannot be called"),
        ({"fetch_k": 0}, "fetch_k=0"),
        ({"where": {"year": {"$near": 3}}}, r"\$near"),
        ({"where": "year > 3"}, "not a dict"),
    ],
)
def test_what_cannot_be_searched_by_is_named(
    retriever: Retriever, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        retriever.search(QUERY, **options)


def test_an_empty_query_is_an_error_in_every_mode(retriever: Retriever) -> None:
    for mode in ("dense", "lexical", "hybrid"):
        with pytest.raises(DataError, match="empty"):
            retriever.search(" ", mode=mode)  # type: ignore[arg-type]


def test_an_embedder_of_rounded_vectors_is_refused(tmp_path: Path, tiny_onnx_retriever: Path) -> None:
    class Rounded(Embedder):
        precision = "int8"  # type: ignore[assignment]

    embedder = Rounded.load(tiny_onnx_retriever, threads=1)
    with pytest.raises(ConfigError, match=r"int8.*float32"):
        Retriever.create(tmp_path / "index", embedder=embedder)
