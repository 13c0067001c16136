"""STMVectorStore in LangChain: upserts, filters, MMR, thresholds, ensembles, the indexing API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_stm import STMEmbeddings, STMRetriever, STMVectorStore
from stm_retriever import ConfigError, DataError, Embedder, IndexFolderError, Retriever
from tests.contract.fruit_index import DOCUMENTS, QUESTION
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat

TEXTS = [document.text for document in DOCUMENTS]
IDS = [document.id for document in DOCUMENTS]
METADATAS: list[dict[str, Any]] = [
    {"year": 2020, "tags": ["fruit", "red"]},
    {"year": 2021, "tags": ["fruit"]},
    {"year": 2022, "tags": ["travel", "red"]},
    {"year": 2023, "tags": ["travel"]},
    {"year": 2019},
]


@pytest.fixture
def embeddings(tiny_embedder: Embedder) -> STMEmbeddings:
    return STMEmbeddings(embedder=tiny_embedder)


@pytest.fixture
def store(tmp_path: Path, embeddings: STMEmbeddings) -> Iterator[STMVectorStore]:
    with STMVectorStore(tmp_path / "index", embeddings) as opened:
        opened.add_texts(TEXTS, METADATAS, ids=IDS)
        yield opened


def names(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


class CountingEmbedder(Embedder):
    """Remembers the texts that it encoded as documents."""

    seen: ClassVar[list[str]] = []

    def encode_document(self, texts: Any, *, show_progress: Any = False) -> Any:
        self.seen.extend(texts)
        return super().encode_document(texts, show_progress=show_progress)


def test_hits_and_scores_are_those_of_langchains_own_store(
    store: STMVectorStore, embeddings: STMEmbeddings
) -> None:
    reference = InMemoryVectorStore(embeddings)
    reference.add_texts(TEXTS, METADATAS, ids=IDS)
    ours = store.similarity_search_with_score(QUESTION, k=5)
    theirs = reference.similarity_search_with_score(QUESTION, k=5)
    assert [document for document, _ in ours] == [document for document, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-6)


def test_mmr_chooses_what_langchains_own_store_chooses(
    store: STMVectorStore, embeddings: STMEmbeddings
) -> None:
    reference = InMemoryVectorStore(embeddings)
    reference.add_texts(TEXTS, METADATAS, ids=IDS)
    for lambda_mult in (0.0, 0.3, 0.7, 1.0):
        options: dict[str, Any] = {"k": 3, "fetch_k": 5, "lambda_mult": lambda_mult}
        assert names(store.max_marginal_relevance_search(QUESTION, **options)) == names(
            reference.max_marginal_relevance_search(QUESTION, **options)
        )


def test_by_vector_is_by_text_with_its_vector(store: STMVectorStore, embeddings: STMEmbeddings) -> None:
    vector = embeddings.embed_query(QUESTION)
    assert store.similarity_search_by_vector(vector, k=3) == store.similarity_search(QUESTION, k=3)
    assert store.similarity_search_with_score_by_vector(vector, 2) == store.similarity_search_with_score(
        QUESTION, 2
    )
    assert store.max_marginal_relevance_search_by_vector(vector, k=3) == store.max_marginal_relevance_search(
        QUESTION, k=3
    )


def test_documents_come_back_as_they_were_given(store: STMVectorStore) -> None:
    (found,) = store.get_by_ids(["pear"])
    assert found == Document(id="pear", page_content=TEXTS[1], metadata=METADATAS[1])
    assert found in store.similarity_search(QUESTION, k=5)


def test_an_unchanged_document_is_not_embedded_again(tmp_path: Path, tiny_onnx_retriever: Path) -> None:
    embedder = CountingEmbedder.load(tiny_onnx_retriever, threads=1)
    assert isinstance(embedder, CountingEmbedder)
    with STMVectorStore(tmp_path / "counted", STMEmbeddings(embedder=embedder)) as store:
        store.add_texts(TEXTS, METADATAS, ids=IDS)
        embedder.seen.clear()
        store.add_texts([*TEXTS[:4], "Snow and rain."], METADATAS, ids=IDS)
        assert embedder.seen == ["Snow and rain."]
        assert len(store.retriever) == 5


def test_the_same_id_is_replaced(store: STMVectorStore) -> None:
    assert store.add_documents([Document(id="pear", page_content="a blue pear", metadata={})]) == ["pear"]
    assert store.get_by_ids(["pear"]) == [Document(id="pear", page_content="a blue pear", metadata={})]
    assert len(store.retriever) == 5


def test_ids_are_made_where_there_are_none_and_kept_where_there_are(store: STMVectorStore) -> None:
    made = store.add_documents([Document(page_content="one"), Document(id="two", page_content="two")])
    assert made[1] == "two" and made[0] not in ("", "two", None)
    assert names(store.get_by_ids(made)) == made


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": 2020}, {"apple"}),
        ({"year": {"$gte": 2020, "$lt": 2022}}, {"apple", "pear"}),
        ({"tags": "red"}, {"apple", "train"}),
        ({"$or": [{"year": 2019}, {"tags": {"$in": ["travel"]}}]}, {"fever", "train", "car"}),
        ({"tags": {"$exists": False}}, {"fever"}),
    ],
)
def test_a_filter_holds_in_every_search(
    store: STMVectorStore, where: dict[str, Any], expected: set[str]
) -> None:
    vector = store.embeddings.embed_query(QUESTION)
    assert set(names(store.similarity_search(QUESTION, k=5, filter=where))) == expected
    assert set(names(store.similarity_search_by_vector(vector, k=5, filter=where))) == expected
    assert set(names(store.max_marginal_relevance_search(QUESTION, k=5, filter=where))) == expected
    retriever = store.as_retriever(search_kwargs={"k": 5, "filter": where})
    assert set(names(retriever.invoke(QUESTION))) == expected
    assert set(names(store.as_retriever(search_kwargs={"k": 5}).invoke(QUESTION, filter=where))) == expected


def test_delete_takes_ids_or_a_filter_or_everything(store: STMVectorStore) -> None:
    assert store.delete(["apple", "nobody"])
    assert store.delete(filter={"tags": "travel"})
    assert set(names(store.similarity_search(QUESTION, k=5))) == {"pear", "fever"}
    with pytest.raises(ConfigError, match="which one counts"):
        store.delete(["pear"], filter={"year": 1})
    store.delete()
    assert store.similarity_search(QUESTION) == []


def test_as_retriever_with_mmr(store: STMVectorStore) -> None:
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "lambda_mult": 0.1})
    assert retriever.invoke(QUESTION) == store.max_marginal_relevance_search(QUESTION, k=3, lambda_mult=0.1)


def test_as_retriever_with_a_threshold_of_relevance(store: STMVectorStore) -> None:
    scored = store.similarity_search_with_score(QUESTION, k=5)
    threshold = float((1 + scored[1][1]) / 2)
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 5, "score_threshold": threshold}
    )
    assert retriever.invoke(QUESTION) == [scored[0][0], scored[1][0]]


def test_relevance_is_half_of_one_plus_the_cosine(store: STMVectorStore) -> None:
    cosines = [score for _, score in store.similarity_search_with_score(QUESTION, k=5)]
    relevances = [score for _, score in store.similarity_search_with_relevance_scores(QUESTION, k=5)]
    assert relevances == pytest.approx([(1 + cosine) / 2 for cosine in cosines])


async def test_relevance_of_a_hybrid_score_is_refused(store: STMVectorStore) -> None:
    with pytest.raises(ConfigError, match="cosine"):
        store.similarity_search_with_relevance_scores(QUESTION, mode="hybrid")
    with pytest.raises(ConfigError, match="cosine"):
        await store.asimilarity_search_with_relevance_scores(QUESTION, rerank=lambda query, texts: [])


def test_modes_and_rerankers_reach_the_search(store: STMVectorStore) -> None:
    found = store.similarity_search("cough treatment", k=2, mode="lexical")
    assert names(found) == ["fever"]
    hybrid = store.as_retriever(search_kwargs={"k": 5, "mode": "hybrid"}).invoke("cough treatment")
    assert names(hybrid)[0] == "fever"
    by_length = store.similarity_search(QUESTION, k=1, rerank=lambda query, texts: [len(t) for t in texts])
    assert by_length[0].page_content == max(TEXTS, key=len)


def test_an_option_that_nobody_knows_is_an_error(store: STMVectorStore) -> None:
    with pytest.raises(TypeError, match="top_k"):
        store.similarity_search(QUESTION, top_k=3)
    with pytest.raises(ConfigError, match="bulk"):
        store.add_texts(["a"], bulk=True)


async def test_asynchronous_methods_do_what_the_others_do(store: STMVectorStore) -> None:
    assert await store.asimilarity_search(QUESTION, k=3) == store.similarity_search(QUESTION, k=3)
    found = await store.asimilarity_search_with_score(QUESTION, k=3, filter={"tags": "red"})
    assert found == store.similarity_search_with_score(QUESTION, k=3, filter={"tags": "red"})
    assert await store.amax_marginal_relevance_search(QUESTION, k=2) == store.max_marginal_relevance_search(
        QUESTION, k=2
    )
    assert await store.aadd_texts(["snow"], ids=["snow"]) == ["snow"]
    assert names(await store.aget_by_ids(["snow"])) == ["snow"]
    await store.adelete(["snow"])
    assert await store.aget_by_ids(["snow"]) == []


async def test_the_event_loop_goes_on_while_texts_are_added_and_searched(
    tmp_path: Path, tiny_onnx_retriever: Path
) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    store = STMVectorStore(tmp_path / "waiting", STMEmbeddings(embedder=embedder))
    await finishes_beside_a_heartbeat(embedder, store.aadd_texts(TEXTS))
    embedder.at_work.clear()
    embedder.ticked.clear()
    assert len(await finishes_beside_a_heartbeat(embedder, store.asimilarity_search(QUESTION))) == 4
    store.close()


def test_from_texts_and_from_documents_without_a_folder_make_a_passing_one(embeddings: STMEmbeddings) -> None:
    store = STMVectorStore.from_texts(TEXTS, embeddings, METADATAS, ids=IDS)
    folder = store.retriever.path
    assert folder.is_dir()
    assert names(store.similarity_search(QUESTION, k=1)) == ["apple"]
    store.close()
    assert not folder.exists()
    documents = [Document(page_content=text) for text in TEXTS]
    with STMVectorStore.from_documents(documents, embeddings) as other:
        assert len(other.retriever) == 5


def test_a_store_is_there_again_when_it_is_opened_again(tmp_path: Path, embeddings: STMEmbeddings) -> None:
    STMVectorStore.from_texts(TEXTS, embeddings, ids=IDS, index=tmp_path / "kept").close()
    with STMVectorStore(tmp_path / "kept") as again:
        assert isinstance(again.embeddings, STMEmbeddings)
        assert names(again.similarity_search(QUESTION, k=1)) == ["apple"]
    assert names(STMRetriever(index=tmp_path / "kept", k=1).invoke(QUESTION)) == ["apple"]


def test_read_only_refuses_to_write_and_to_make(tmp_path: Path, embeddings: STMEmbeddings) -> None:
    STMVectorStore.from_texts(TEXTS, embeddings, index=tmp_path / "kept").close()
    with STMVectorStore(tmp_path / "kept", read_only=True) as store, pytest.raises(IndexFolderError):
        store.add_texts(["more"])
    with pytest.raises(IndexFolderError, match="nowhere"):
        STMVectorStore(tmp_path / "nowhere", embeddings, read_only=True)


def test_arguments_that_contradict_each_other_are_named(
    tmp_path: Path, embeddings: STMEmbeddings, empty_retriever: Retriever
) -> None:
    with pytest.raises(ConfigError, match="no embedder"):
        STMVectorStore(tmp_path / "new")
    with pytest.raises(ConfigError, match="embedding"):
        STMVectorStore(embedding=embeddings, retriever=empty_retriever)
    with pytest.raises(ConfigError, match="change_kind"):
        STMVectorStore(empty_retriever.path, embeddings, kind="hnsw")
    with pytest.raises(ConfigError, match="2 metadatas"):
        STMVectorStore(retriever=empty_retriever).add_texts(["one"], [{}, {}])


def test_an_id_twice_in_one_call_is_an_error(store: STMVectorStore) -> None:
    with pytest.raises(DataError, match="twice"):
        store.add_texts(["one", "two"], ids=["x", "x"])


# Beside LangChain's other parts ---------------------------------------------------------------------------


def test_the_indexing_api_adds_skips_updates_and_cleans(store: STMVectorStore) -> None:
    manager = InMemoryRecordManager("fruit")
    manager.create_schema()
    store.delete()

    def run(*texts: str) -> dict[str, int]:
        documents = [Document(page_content=text, metadata={"source": text.split()[0]}) for text in texts]
        found = index(documents, manager, store, cleanup="full", source_id_key="source", key_encoder="sha256")
        return {name: int(count) for name, count in found.items()}  # type: ignore[call-overload]

    assert run("apple red", "pear green")["num_added"] == 2
    assert run("apple red", "pear green") == {
        "num_added": 0,
        "num_updated": 0,
        "num_skipped": 2,
        "num_deleted": 0,
    }
    third = run("apple red", "pear blue")
    assert (third["num_added"], third["num_deleted"]) == (1, 1)
    texts = [document.page_content for document in store.similarity_search("fruit", k=5)]
    assert sorted(texts) == ["apple red", "pear blue"]


def test_an_ensemble_fuses_by_reciprocal_ranks(store: STMVectorStore) -> None:
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="langchain-classic is missing")
    dense = store.as_retriever(search_kwargs={"k": 5})
    words = STMRetriever(retriever=store.retriever, k=5, mode="lexical")
    ensemble = retrievers.EnsembleRetriever(retrievers=[dense, words], id_key=None)
    found = [document.page_content for document in ensemble.invoke("cough treatment")]
    assert found[0] == DOCUMENTS[4].text
    assert sorted(set(found)) == sorted(TEXTS)


# STMRetriever's further options ---------------------------------------------------------------------------


def test_a_retriever_takes_filter_mode_and_least_score_in_constructor_and_call(store: STMVectorStore) -> None:
    retriever = STMRetriever(retriever=store.retriever, where={"tags": "red"}, k=5)
    assert set(names(retriever.invoke(QUESTION))) == {"apple", "train"}
    assert set(names(retriever.invoke(QUESTION, where={"year": 2019}))) == {"fever"}
    assert names(retriever.invoke("train", mode="lexical", k=1)) == ["train"]
    best = retriever.invoke(QUESTION)[0].metadata["score"]
    assert len(retriever.invoke(QUESTION, min_score=best)) == 1
    lexical = STMRetriever(retriever=store.retriever, mode="lexical")
    assert names(lexical.invoke("cough treatment")) == ["fever"]


async def test_a_retriever_takes_a_reranker(store: STMVectorStore) -> None:
    def shortest_first(query: str, texts: Any) -> np.ndarray:
        return -np.array([len(text) for text in texts])

    retriever = STMRetriever(retriever=store.retriever, rerank=shortest_first, k=2)
    expected = sorted(TEXTS, key=len)[:2]
    assert [document.page_content for document in retriever.invoke(QUESTION)] == expected
    assert [document.page_content for document in await retriever.ainvoke(QUESTION)] == expected


def test_a_reranker_must_be_callable(store: STMVectorStore) -> None:
    with pytest.raises(ValueError, match="rerank"):
        STMRetriever(retriever=store.retriever, rerank="bge-reranker")
