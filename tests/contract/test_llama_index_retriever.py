"""STMRetriever in LlamaIndex: nodes, scores, query bundles, callbacks, an event loop that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index.retrievers.stm import STMRetriever
from stm_retriever import (
    ArtifactMismatchError,
    ConfigError,
    DataError,
    Document,
    Embedder,
    Hit,
    IndexFolderError,
    ModelFolderError,
    Retriever,
)
from tests.contract.fruit_index import DOCUMENTS, QUESTION, make_fruit_index
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat
from tests.tiny_retriever import make_tiny_retriever


@pytest.fixture
def index(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    return make_fruit_index(tmp_path / "fruit", tiny_embedder)


@pytest.fixture
def retriever(index: Path) -> STMRetriever:
    return STMRetriever(index=str(index), similarity_top_k=5)


def hits(index: Path, k: int, **options: Any) -> list[Hit]:
    with Retriever.open(index, read_only=True) as opened:
        return opened.search(QUESTION, k, **options)


def found(nodes: list[NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(item.node.node_id, item.score) for item in nodes]


def test_nodes_scores_and_texts_are_those_of_the_retriever(retriever: STMRetriever, index: Path) -> None:
    nodes = retriever.retrieve(QUESTION)
    assert found(nodes) == [(hit.id, hit.score) for hit in hits(index, 5)]
    assert [item.text for item in nodes] == [hit.text for hit in hits(index, 5)]
    assert {type(item.node) for item in nodes} == {TextNode}


class Recorder(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)


async def test_a_search_sends_the_events_of_a_retrieval_and_of_an_embedding(retriever: STMRetriever) -> None:
    recorder, root = Recorder(), get_dispatcher("root")
    root.add_event_handler(recorder)
    try:
        nodes = retriever.retrieve(QUESTION)
        await retriever.aretrieve(QUESTION)
    finally:
        root.event_handlers.remove(recorder)
    once = [RetrievalStartEvent, EmbeddingStartEvent, EmbeddingEndEvent, RetrievalEndEvent]
    assert [type(event) for event in recorder.seen] == once * 2
    assert recorder.seen[1].model_dict["model_name"] == "tiny"
    assert recorder.seen[2].chunks == [QUESTION]
    assert found(recorder.seen[3].nodes) == found(nodes)


async def test_aretrieve_gives_what_retrieve_gives(retriever: STMRetriever) -> None:
    assert found(await retriever.aretrieve(QUESTION)) == found(retriever.retrieve(QUESTION)) != []


def test_metadata_is_the_documents_own_and_nothing_else(retriever: STMRetriever) -> None:
    metadata = {item.node.node_id: item.node.metadata for item in retriever.retrieve(QUESTION)}
    assert metadata == {document.id: dict(document.metadata) for document in DOCUMENTS}


def test_a_part_names_its_parent_and_its_place(retriever: STMRetriever) -> None:
    nodes = {item.node.node_id: item.node for item in retriever.retrieve(QUESTION)}
    car, pear = nodes["car"], nodes["pear"]
    assert isinstance(car, TextNode)
    assert (car.ref_doc_id, car.start_char_idx, car.end_char_idx) == ("travel", 18, 51)
    assert pear.ref_doc_id is None


def test_similarity_top_k_says_how_many(index: Path) -> None:
    assert len(STMRetriever(index=index).retrieve(QUESTION)) == 4
    assert len(STMRetriever(index=index, similarity_top_k=1).retrieve(QUESTION)) == 1


@pytest.mark.parametrize("k", [0, -3])
def test_similarity_top_k_below_one_is_an_error(index: Path, k: int) -> None:
    with pytest.raises(ConfigError, match=f"similarity_top_k={k}"):
        STMRetriever(index=index, similarity_top_k=k)


def test_grouping_by_parent_gives_the_best_part_of_each(index: Path) -> None:
    grouped = STMRetriever(index=index, similarity_top_k=5, group_by_parent=True)
    expected = [(hit.id, hit.score) for hit in hits(index, 5, group_by_parent=True)]
    assert found(grouped.retrieve(QUESTION)) == expected
    assert len(expected) == len(DOCUMENTS) - 1


async def test_an_embedding_in_the_bundle_is_used_instead_of_the_text(
    retriever: STMRetriever, tiny_embedder: Embedder
) -> None:
    vector = tiny_embedder.encode_query(["fever cough treatment"])[0].tolist()
    bundle = QueryBundle(query_str=QUESTION, embedding=vector)
    expected = found(retriever.retrieve("fever cough treatment"))
    assert found(retriever.retrieve(bundle)) == expected
    assert found(await retriever.aretrieve(bundle)) == expected
    assert expected[0][0] == "fever"


def test_the_length_of_an_embedding_in_the_bundle_does_not_change_the_scores(
    retriever: STMRetriever, tiny_embedder: Embedder
) -> None:
    vector = tiny_embedder.encode_query([QUESTION])[0] * 7
    nodes = retriever.retrieve(QueryBundle(query_str="-", embedding=vector.tolist()))
    plain = retriever.retrieve(QUESTION)
    assert [item.score for item in nodes] == pytest.approx([item.score for item in plain], abs=1e-6)


def test_an_embedding_of_another_model_is_refused(retriever: STMRetriever) -> None:
    with pytest.raises(ConfigError, match="3"):
        retriever.retrieve(QueryBundle(query_str=QUESTION, embedding=[0.1, 0.2, 0.3]))


async def test_custom_embedding_strings_are_averaged_as_queries(
    retriever: STMRetriever, tiny_embedder: Embedder, index: Path
) -> None:
    texts = ["fever and cough", "treatment of a child"]
    bundle = QueryBundle(query_str=QUESTION, custom_embedding_strs=texts)
    mean = tiny_embedder.encode_query(texts).mean(axis=0)
    with Retriever.open(index, read_only=True) as opened:
        expected = [(hit.id, hit.score) for hit in opened.search_vector(mean, 5)]
    assert found(retriever.retrieve(bundle)) == expected
    assert found(await retriever.aretrieve(bundle)) == expected


def test_a_bundle_is_left_as_it_was(retriever: STMRetriever) -> None:
    bundle = QueryBundle(query_str=QUESTION)
    retriever.retrieve(bundle)
    assert bundle.embedding is None


def test_an_empty_question_is_an_error(retriever: STMRetriever) -> None:
    with pytest.raises(DataError, match="empty"):
        retriever.retrieve("")


def test_callbacks_hear_of_question_and_nodes(index: Path) -> None:
    listener = LlamaDebugHandler(print_trace_on_end=False)
    retriever = STMRetriever(index=index, callback_manager=CallbackManager([listener]))
    nodes = retriever.retrieve(QUESTION)
    ((start, end),) = listener.get_event_pairs(CBEventType.RETRIEVE)
    assert (start.payload or {})[EventPayload.QUERY_STR] == QUESTION
    assert (end.payload or {})[EventPayload.NODES] == nodes


async def test_the_event_loop_goes_on_during_a_search(index: Path, tiny_onnx_retriever: Path) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    retriever = STMRetriever(index=index, embedder=embedder)
    assert len(await finishes_beside_a_heartbeat(embedder, retriever.aretrieve(QUESTION))) == 4


def test_an_open_retriever_is_taken_as_it_is(index: Path) -> None:
    with Retriever.open(index) as opened:
        retriever = STMRetriever(retriever=opened)
        assert retriever.retriever is opened
        assert len(retriever.retrieve(QUESTION)) == 4


def test_another_process_may_write_while_a_retriever_is_open(retriever: STMRetriever, index: Path) -> None:
    with Retriever.open(index) as writer:
        writer.add([Document(id="new", text=QUESTION)])
    assert retriever.retrieve(QUESTION)[0].node.node_id == "new"


def test_arguments_that_contradict_each_other_are_named(index: Path, tiny_embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match="neither index= nor retriever="):
        STMRetriever()
    with Retriever.open(index) as opened, pytest.raises(ConfigError, match="embedder, index"):
        STMRetriever(index, retriever=opened, embedder=tiny_embedder)
    with pytest.raises(ConfigError, match="threads, variant"):
        STMRetriever(index, embedder=tiny_embedder, variant="int8", threads=1)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="no-such-index"):
        STMRetriever(index=tmp_path / "no-such-index")


def test_an_index_whose_model_is_gone_says_which(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "model", name="lost")
    index = make_fruit_index(tmp_path / "fruit", Embedder.load(model, threads=1))
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFolderError, match="lost"):
        STMRetriever(index=index)


def test_another_model_than_the_indexs_is_refused(index: Path, tmp_path: Path) -> None:
    stranger = Embedder.load(make_tiny_retriever(tmp_path / "stranger", seed=7, name="stranger"), threads=1)
    with pytest.raises(ArtifactMismatchError, match=r"'tiny'.*'stranger'"):
        STMRetriever(index=index, embedder=stranger)


def test_variant_and_threads_reach_the_model(tmp_path: Path) -> None:
    model = make_tiny_retriever(tmp_path / "two", variants=("fp32", "w8"))
    index = make_fruit_index(tmp_path / "fruit", Embedder.load(model, threads=1))
    retriever = STMRetriever(index=index, variant="w8", threads=1)
    assert retriever.retriever.embedder.variant == "w8"
    assert len(retriever.retrieve(QUESTION)) == 4
