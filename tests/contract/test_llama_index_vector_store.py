"""STMVectorStore in LlamaIndex: nodes, filters, modes, storage contexts, pipelines, query engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from llama_index.embeddings.stm import STMEmbedding
from llama_index.retrievers.stm import STMRetriever
from llama_index.vector_stores.stm import STMVectorStore
from llama_index.vector_stores.stm.filters import to_where
from stm_retriever import ConfigError, DataError, Embedder, Retriever
from stm_retriever import Document as STMDocument
from stm_retriever.filters import check_filter, matches
from tests.contract.fruit_index import DOCUMENTS, QUESTION
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat

METADATAS: dict[str, dict[str, Any]] = {
    "apple": {"year": 2020, "tags": ["fruit", "red"], "note": ""},
    "pear": {"year": 2021, "tags": ["fruit"], "price": 1.5},
    "train": {"year": 2022, "tags": ["travel", "red"]},
    "car": {"year": 2023, "tags": [], "maker": "ours"},
    "fever": {"year": 2019, "note": "mild"},
}


@pytest.fixture(scope="module")
def model(tiny_embedder: Embedder) -> STMEmbedding:
    return STMEmbedding(embedder=tiny_embedder)


def make_nodes(model: STMEmbedding) -> list[TextNode]:
    return [
        TextNode(
            id_=item.id,
            text=item.text,
            metadata=METADATAS[item.id],
            embedding=model.get_text_embedding(item.text),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=item.parent_id or "single")},
        )
        for item in DOCUMENTS
    ]


@pytest.fixture
def store(tmp_path: Path, model: STMEmbedding) -> Iterator[STMVectorStore]:
    with STMVectorStore(tmp_path / "index", model) as opened:
        opened.add(make_nodes(model))
        yield opened


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, model: STMEmbedding) -> Iterator[STMVectorStore]:
    """The same, for tests that only read."""
    with STMVectorStore(tmp_path_factory.mktemp("shelf") / "index", model) as opened:
        opened.add(make_nodes(model))
        yield opened


def asked(model: STMEmbedding, **options: Any) -> VectorStoreQuery:
    options = {"similarity_top_k": 5, "query_str": QUESTION, **options}
    return VectorStoreQuery(query_embedding=model.get_query_embedding(QUESTION), **options)


def one(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


# Nodes ----------------------------------------------------------------------------------------------------


def test_a_node_comes_back_whole(store: STMVectorStore) -> None:
    node = TextNode(
        id_="whole",
        text="A cherry is red.",
        metadata={"nested": {"a": [1, 2]}, "doc_id": "the user's own"},
        excluded_embed_metadata_keys=["nested"],
        start_char_idx=3,
        end_char_idx=19,
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
        },
        embedding=store.retriever.embedder.encode_document(["A cherry is red."])[0].tolist(),
    )
    store.add([node])
    (found,) = store.get_nodes(["whole"])
    assert found == node.model_copy(update={"embedding": None})
    assert type(found) is TextNode
    assert (found.ref_doc_id, found.hash) == ("source", node.hash)


@pytest.mark.parametrize(
    "node", [IndexNode(text="see there", index_id="other"), ImageNode(text="a tree", image_url="http://x/y")]
)
def test_other_kinds_of_nodes_come_back_as_what_they_are(store: STMVectorStore, node: BaseNode) -> None:
    node.embedding = [1.0] * 32
    store.add([node])
    (found,) = store.get_nodes([node.node_id])
    assert type(found) is type(node)
    assert found.get_content() == node.get_content()


def test_adding_an_id_again_replaces_it(store: STMVectorStore, model: STMEmbedding) -> None:
    changed = TextNode(id_="pear", text="a blue pear", embedding=model.get_text_embedding("a blue pear"))
    assert store.add([changed]) == ["pear"]
    assert store.get_nodes(["pear"])[0].get_content() == "a blue pear"
    assert len(store.retriever) == 5


def test_a_node_without_embedding_or_of_another_length_is_an_error(store: STMVectorStore) -> None:
    with pytest.raises(ValueError, match="embedding"):
        store.add([TextNode(text="no vector")])
    with pytest.raises(ConfigError, match="32"):
        store.add([TextNode(text="short vector", embedding=[1.0, 2.0])])


def test_deleting_by_document_by_node_by_filter_and_all(store: STMVectorStore) -> None:
    store.delete("travel")
    assert {node.node_id for node in store.get_nodes()} == {"apple", "pear", "fever"}
    store.delete_nodes(["apple", "nobody"])
    store.delete_nodes(filters=one("year", 2019))
    assert [node.node_id for node in store.get_nodes()] == ["pear"]
    with pytest.raises(ConfigError, match="clear"):
        store.delete_nodes()
    store.clear()
    assert store.get_nodes() == []


def test_nodes_by_ids_and_filters(store: STMVectorStore) -> None:
    assert [node.node_id for node in store.get_nodes(["fever", "nobody", "apple"])] == ["fever", "apple"]
    both = store.get_nodes(["fever", "apple"], one("year", 2020))
    assert [node.node_id for node in both] == ["apple"]
    assert store.get_nodes([]) == []
    store.delete_nodes([])
    assert len(store.get_nodes()) == 5


# Queries --------------------------------------------------------------------------------------------------


def test_hits_and_similarities_are_those_of_llama_indexes_own_store(
    shelf: STMVectorStore, model: STMEmbedding
) -> None:
    reference = SimpleVectorStore()
    reference.add(make_nodes(model))
    for options in ({}, {"similarity_top_k": 2}, {"filters": one("year", 2021, FilterOperator.GTE)}):
        ours, theirs = shelf.query(asked(model, **options)), reference.query(asked(model, **options))
        assert ours.ids == theirs.ids
        assert ours.similarities == pytest.approx(theirs.similarities, abs=1e-6)
        assert [node.node_id for node in ours.nodes or []] == ours.ids


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_mmr_chooses_what_llama_indexes_own_store_chooses(
    shelf: STMVectorStore, model: STMEmbedding, threshold: float
) -> None:
    reference = SimpleVectorStore()
    reference.add(make_nodes(model))
    query = asked(model, mode=VectorStoreQueryMode.MMR, similarity_top_k=3)
    assert (
        shelf.query(query, mmr_threshold=threshold).ids == reference.query(query, mmr_threshold=threshold).ids
    )
    query.mmr_threshold = threshold
    assert shelf.query(query).ids == reference.query(query, mmr_threshold=threshold).ids


def test_words_alone_and_both_together(shelf: STMVectorStore, model: STMEmbedding) -> None:
    for mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
        assert shelf.query(asked(model, query_str="treatment", mode=mode)).ids == ["fever"]
    hybrid = shelf.query(
        asked(model, query_str="treatment", mode=VectorStoreQueryMode.HYBRID, hybrid_top_k=3)
    )
    assert len(hybrid.ids or []) == 3
    assert "fever" in (hybrid.ids or [])
    words = asked(model, query_str="treatment", mode=VectorStoreQueryMode.HYBRID, alpha=0.0)
    assert (shelf.query(words).ids or [])[0] == "fever"
    vectors = asked(model, query_str="treatment", mode=VectorStoreQueryMode.HYBRID, alpha=1.0)
    assert shelf.query(vectors).ids == shelf.query(asked(model)).ids


def test_ids_of_nodes_and_documents_narrow_a_query(shelf: STMVectorStore, model: STMEmbedding) -> None:
    assert set(shelf.query(asked(model, node_ids=["car", "pear"])).ids or []) == {"car", "pear"}
    assert set(shelf.query(asked(model, doc_ids=["travel"])).ids or []) == {"car", "train"}
    both = asked(model, doc_ids=["travel"], filters=one("year", 2022))
    assert shelf.query(both).ids == ["train"]


@pytest.mark.parametrize(
    "mode",
    [VectorStoreQueryMode.SVM, VectorStoreQueryMode.SEMANTIC_HYBRID, VectorStoreQueryMode.LINEAR_REGRESSION],
)
def test_a_mode_without_counterpart_is_an_error(
    shelf: STMVectorStore, model: STMEmbedding, mode: VectorStoreQueryMode
) -> None:
    with pytest.raises(ConfigError, match=mode.value):
        shelf.query(asked(model, mode=mode))


def test_a_query_that_lacks_vector_or_text_is_an_error(shelf: STMVectorStore, model: STMEmbedding) -> None:
    with pytest.raises(ConfigError, match="query_embedding"):
        shelf.query(VectorStoreQuery(query_str="x"))
    for mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.HYBRID):
        with pytest.raises(ConfigError, match="query_str"):
            shelf.query(asked(model, query_str=None, mode=mode))


# Filters, operator by operator ----------------------------------------------------------------------------

OP = FilterOperator
FILTERS = [
    MetadataFilter(key="year", value=2020, operator=OP.EQ),
    MetadataFilter(key="maker", value="ours", operator=OP.EQ),
    MetadataFilter(key="year", value=2020, operator=OP.NE),
    MetadataFilter(key="maker", value="ours", operator=OP.NE),
    MetadataFilter(key="year", value=2020, operator=OP.GT),
    MetadataFilter(key="year", value=2020, operator=OP.GTE),
    MetadataFilter(key="year", value=2020, operator=OP.LT),
    MetadataFilter(key="year", value=2020, operator=OP.LTE),
    MetadataFilter(key="price", value=1.0, operator=OP.GT),
    MetadataFilter(key="maker", value="n", operator=OP.GTE),
    MetadataFilter(key="year", value=[2019, 2023], operator=OP.IN),
    MetadataFilter(key="year", value=[2019, 2023], operator=OP.NIN),
    MetadataFilter(key="maker", value=["theirs"], operator=OP.NIN),
    MetadataFilter(key="tags", value=["red", "blue"], operator=OP.ANY),
    MetadataFilter(key="tags", value=["red", "fruit"], operator=OP.ALL),
    MetadataFilter(key="tags", value="fruit", operator=OP.CONTAINS),
    MetadataFilter(key="tags", value=None, operator=OP.IS_EMPTY),
    MetadataFilter(key="note", value=None, operator=OP.IS_EMPTY),
]


@pytest.mark.parametrize("part", FILTERS, ids=lambda part: f"{part.key} {part.operator.value}")
def test_an_operator_means_what_it_means_to_llama_index(
    shelf: STMVectorStore, model: STMEmbedding, part: MetadataFilter
) -> None:
    filters = MetadataFilters(filters=[part])
    expected = set(filter(build_metadata_filter_fn(METADATAS.__getitem__, filters), METADATAS))
    assert set(shelf.query(asked(model, filters=filters)).ids or []) == expected
    assert {node.node_id for node in shelf.get_nodes(filters=filters)} == expected


@pytest.mark.parametrize("condition", list(FilterCondition))
def test_a_condition_means_what_it_means_to_llama_index(
    shelf: STMVectorStore, model: STMEmbedding, condition: FilterCondition
) -> None:
    for first, second in zip(FILTERS, FILTERS[5:], strict=False):
        filters = MetadataFilters(filters=[first, second], condition=condition)
        expected = set(filter(build_metadata_filter_fn(METADATAS.__getitem__, filters), METADATAS))
        assert set(shelf.query(asked(model, filters=filters)).ids or []) == expected


def test_filters_may_be_nested() -> None:
    inner = MetadataFilters(filters=FILTERS[:2], condition=FilterCondition.OR)
    where = to_where(MetadataFilters(filters=[inner, FILTERS[4]], condition=FilterCondition.AND))
    check_filter(where)
    assert [name for name, metadata in METADATAS.items() if matches(where, metadata)] == ["car"]
    assert to_where(None) is None
    assert to_where(MetadataFilters(filters=[])) is None


@pytest.mark.parametrize(
    ("key", "value", "operator"),
    [
        ("note", "mild", OP.TEXT_MATCH),
        ("note", "MILD", OP.TEXT_MATCH_INSENSITIVE),
        ("year", 2020, OP.IN),
        ("tags", "red", OP.ANY),
        ("year", None, OP.EQ),
        ("tags", ["red"], OP.EQ),
        ("year", [1], OP.GT),
    ],
)
def test_what_has_no_counterpart_is_an_error(key: str, value: Any, operator: FilterOperator) -> None:
    with pytest.raises(ConfigError, match=f"{key!r}"):
        to_where(one(key, value, operator))


# Asynchronous -----------------------------------------------------------------------------------------------


async def test_asynchronous_methods_do_what_the_others_do(store: STMVectorStore, model: STMEmbedding) -> None:
    found = await store.aquery(asked(model))
    assert found.ids == store.query(asked(model)).ids
    nodes = [TextNode(id_="snow", text="snow", embedding=model.get_text_embedding("snow"))]
    assert await store.async_add(nodes) == ["snow"]
    assert [node.node_id for node in await store.aget_nodes(["snow"])] == ["snow"]
    await store.adelete_nodes(["snow"])
    await store.adelete("travel")
    assert {node.node_id for node in await store.aget_nodes()} == {"apple", "pear", "fever"}
    await store.aclear()
    assert await store.aget_nodes() == []


async def test_the_event_loop_goes_on_while_a_reranker_works(
    store: STMVectorStore, model: STMEmbedding, tiny_onnx_retriever: Path
) -> None:
    waiting = WaitingEmbedder(tiny_onnx_retriever)

    def rerank(query: str, texts: Any) -> list[float]:
        waiting.encode_query(["wait"])
        return [float(len(text)) for text in texts]

    found = await finishes_beside_a_heartbeat(waiting, store.aquery(asked(model), rerank=rerank))
    assert len(found.ids or []) == 5


async def test_many_queries_at_once_all_come_back(shelf: STMVectorStore, model: STMEmbedding) -> None:
    queries = [asked(model, similarity_top_k=k) for k in (1, 2, 3, 4, 5) * 4]
    found = await asyncio.gather(*(shelf.aquery(query) for query in queries))
    assert [len(result.ids or []) for result in found] == [query.similarity_top_k for query in queries]


# Beside LlamaIndex's other parts --------------------------------------------------------------------------


def make_index(store: STMVectorStore, model: STMEmbedding) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    documents = [
        Document(id_=item.id, text=item.text, metadata=dict(METADATAS[item.id])) for item in DOCUMENTS
    ]
    return VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=model)


@pytest.fixture
def empty(tmp_path: Path, model: STMEmbedding) -> Iterator[STMVectorStore]:
    with STMVectorStore(tmp_path / "empty", model) as opened:
        yield opened


def test_a_vector_store_index_inserts_retrieves_filters_and_deletes(
    empty: STMVectorStore, model: STMEmbedding
) -> None:
    index = make_index(empty, model)
    found = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert found[0].node.ref_doc_id == "apple"
    narrowed = index.as_retriever(similarity_top_k=5, filters=one("year", 2022)).retrieve(QUESTION)
    assert [item.node.ref_doc_id for item in narrowed] == ["train"]
    index.insert(Document(id_="snow", text="snow in winter"))
    index.delete_ref_doc("apple")
    left = {item.node.ref_doc_id for item in index.as_retriever(similarity_top_k=9).retrieve(QUESTION)}
    assert left == {"pear", "train", "car", "fever", "snow"}


@pytest.mark.parametrize("mode", ["default", "hybrid", "sparse", "mmr"])
def test_an_index_retrieves_in_every_mode(empty: STMVectorStore, model: STMEmbedding, mode: str) -> None:
    retriever = make_index(empty, model).as_retriever(vector_store_query_mode=mode, similarity_top_k=2)
    assert "fever" in {item.node.ref_doc_id for item in retriever.retrieve("treatment child")}


async def test_an_index_retrieves_asynchronously(empty: STMVectorStore, model: STMEmbedding) -> None:
    retriever = make_index(empty, model).as_retriever(similarity_top_k=3)
    found = await retriever.aretrieve(QUESTION)
    assert [item.node_id for item in found] == [item.node_id for item in retriever.retrieve(QUESTION)]


def test_a_storage_context_persists_and_loads(
    tmp_path: Path, empty: STMVectorStore, model: STMEmbedding
) -> None:
    index = make_index(empty, model)
    expected = [item.node_id for item in index.as_retriever().retrieve(QUESTION)]
    persisted = str(tmp_path / "storage")
    index.storage_context.persist(persist_dir=persisted)
    empty.close()

    with STMVectorStore.from_persist_dir(persisted) as store:
        context = StorageContext.from_defaults(persist_dir=persisted, vector_store=store)
        again = load_index_from_storage(context, embed_model=model)
        assert [item.node_id for item in again.as_retriever().retrieve(QUESTION)] == expected


def test_llama_indexes_simple_store_does_not_take_the_persisted_file_for_an_empty_one(
    tmp_path: Path, empty: STMVectorStore, model: STMEmbedding
) -> None:
    persisted = str(tmp_path / "storage")
    make_index(empty, model).storage_context.persist(persist_dir=persisted)
    with pytest.raises(Exception):  # noqa: B017  (whatever it raises, it must not go on)
        StorageContext.from_defaults(persist_dir=persisted)


def test_only_this_machines_file_system_is_persisted_to(tmp_path: Path, empty: STMVectorStore) -> None:
    fsspec = pytest.importorskip("fsspec")
    empty.persist(str(tmp_path / "local.json"), fs=fsspec.filesystem("file"))
    assert STMVectorStore.from_persist_path(str(tmp_path / "local.json"), read_only=True).index == empty.index
    with pytest.raises(ConfigError, match="MemoryFileSystem"):
        empty.persist("/there.json", fs=fsspec.filesystem("memory"))


def test_a_file_of_another_store_is_not_taken_for_ours(tmp_path: Path) -> None:
    SimpleVectorStore().persist(str(tmp_path / "default__vector_store.json"))
    with pytest.raises(DataError, match="another vector store"):
        STMVectorStore.from_persist_dir(str(tmp_path))
    with pytest.raises(DataError, match="nothing_here"):
        STMVectorStore.from_persist_dir(str(tmp_path / "nothing_here"))


def test_an_ingestion_pipeline_upserts(empty: STMVectorStore, model: STMEmbedding) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), model],
        docstore=SimpleDocumentStore(),
        vector_store=empty,
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    first = [Document(id_="a", text="A red apple."), Document(id_="b", text="A green pear.")]
    assert len(pipeline.run(documents=first)) == 2
    assert pipeline.run(documents=first) == []
    changed = [Document(id_="a", text="A blue plum."), first[1]]
    assert [node.ref_doc_id for node in pipeline.run(documents=changed)] == ["a"]
    assert sorted(node.get_content() for node in empty.get_nodes()) == ["A blue plum.", "A green pear."]


async def test_an_asynchronous_pipeline_with_deletes(empty: STMVectorStore, model: STMEmbedding) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), model],
        docstore=SimpleDocumentStore(),
        vector_store=empty,
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    await pipeline.arun(documents=[Document(id_="a", text="one"), Document(id_="b", text="two")])
    await pipeline.arun(documents=[Document(id_="b", text="two")])
    assert [node.get_content() for node in empty.get_nodes()] == ["two"]


def test_a_query_engine_answers_from_the_nodes(empty: STMVectorStore, model: STMEmbedding) -> None:
    retriever = make_index(empty, model).as_retriever(similarity_top_k=1)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert [item.node.ref_doc_id for item in engine.query(QUESTION).source_nodes] == ["apple"]


def test_a_fusion_retriever_fuses_vectors_and_words(empty: STMVectorStore, model: STMEmbedding) -> None:
    index = make_index(empty, model)
    words = STMRetriever(retriever=empty.retriever, mode="lexical", similarity_top_k=5)
    retriever = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=5), words],
        llm=MockLLM(),
        num_queries=1,
        mode="reciprocal_rerank",
        similarity_top_k=5,
        use_async=False,
    )
    found = retriever.retrieve("treatment")
    assert found[0].node.ref_doc_id == "fever"
    assert len(found) == 5


# The retriever beside the store ---------------------------------------------------------------------------


def test_the_retriever_gives_back_the_stores_nodes(shelf: STMVectorStore, model: STMEmbedding) -> None:
    found = STMRetriever(retriever=shelf.retriever, similarity_top_k=5).retrieve(QUESTION)
    expected = shelf.query(asked(model))
    assert [item.node for item in found] == expected.nodes
    assert [item.score for item in found] == pytest.approx(expected.similarities)


async def test_the_retriever_takes_filter_mode_reranker_and_least_score(shelf: STMVectorStore) -> None:
    def retrieve(**options: Any) -> list[str]:
        retriever = STMRetriever(retriever=shelf.retriever, similarity_top_k=5, **options)
        return [item.node_id for item in retriever.retrieve(QUESTION)]

    assert set(retrieve(where={"tags": "red"})) == {"apple", "train"}
    assert retrieve(rerank=lambda query, texts: [-len(text) for text in texts])[0] == "train"
    assert set(retrieve(mode="hybrid")) == {item.id for item in DOCUMENTS}
    best = STMRetriever(retriever=shelf.retriever).retrieve(QUESTION)[0].score
    assert retrieve(min_score=best) == ["apple"]
    words = STMRetriever(retriever=shelf.retriever, mode="lexical")
    assert [
        item.node_id for item in await words.aretrieve(QueryBundle("treatment", embedding=[1.0] * 32))
    ] == ["fever"]


def test_what_is_stored_under_a_nodes_name_must_be_a_node(empty_retriever: Retriever) -> None:
    empty_retriever.add([STMDocument(id="x", text="apple", metadata={"_node_content": "no JSON"})])
    with pytest.raises(DataError, match="'x'"):
        STMRetriever(retriever=empty_retriever).retrieve(QUESTION)


def test_arguments_that_contradict_each_other_are_named(
    tmp_path: Path, model: STMEmbedding, empty_retriever: Retriever
) -> None:
    with pytest.raises(ConfigError, match="neither index= nor retriever="):
        STMVectorStore()
    with pytest.raises(ConfigError, match="no embedder"):
        STMVectorStore(tmp_path / "new")
    with pytest.raises(ConfigError, match="embed_model"):
        STMVectorStore(retriever=empty_retriever, embed_model=model)
    with pytest.raises(ConfigError, match="change_kind"):
        STMVectorStore(empty_retriever.path, model, kind="hnsw")
