"""STMEmbedding in LlamaIndex: the right prompt for each role, serialising, an event loop that goes on."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher
from pydantic import Field, ValidationError

from llama_index.embeddings.stm import STMEmbedding
from stm_retriever import ArtifactMismatchError, ConfigError, Embedder, ModelFolderError
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat
from tests.tiny_retriever import make_tiny_retriever

TEXT = "a red apple"


@pytest.fixture
def embedding(tiny_onnx_retriever: Path) -> STMEmbedding:
    return STMEmbedding(model_name=str(tiny_onnx_retriever), threads=1)


async def test_a_query_gets_the_query_prompt(embedding: STMEmbedding, tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.encode_query([TEXT])[0].tolist()
    assert expected != pytest.approx(tiny_embedder.encode_document([TEXT])[0].tolist(), abs=1e-2)
    assert embedding.get_query_embedding(TEXT) == expected
    assert await embedding.aget_query_embedding(TEXT) == expected
    assert embedding.get_agg_embedding_from_queries([TEXT, TEXT]) == pytest.approx(expected)


async def test_texts_get_the_document_prompt(embedding: STMEmbedding, tiny_embedder: Embedder) -> None:
    texts = [TEXT, "the sea", TEXT]
    alone = tiny_embedder.encode_document([TEXT])[0].tolist()
    assert embedding.get_text_embedding(TEXT) == alone
    assert await embedding.aget_text_embedding(TEXT) == alone
    expected = tiny_embedder.encode_document(texts).tolist()
    assert embedding.get_text_embedding_batch(texts) == expected
    assert await embedding.aget_text_embedding_batch(texts) == expected


async def test_nodes_get_the_document_prompt(embedding: STMEmbedding, tiny_embedder: Embedder) -> None:
    expected = tiny_embedder.encode_document([TEXT])[0].tolist()
    assert embedding([TextNode(text=TEXT)])[0].embedding == expected
    assert (await embedding.acall([TextNode(text=TEXT)]))[0].embedding == expected


def test_vectors_are_python_floats_of_length_one(embedding: STMEmbedding) -> None:
    vector = embedding.get_query_embedding(TEXT)
    assert {type(value) for value in vector} == {float}
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


async def test_no_texts_give_no_vectors(embedding: STMEmbedding) -> None:
    assert embedding.get_text_embedding_batch([]) == []
    assert await embedding.aget_text_embedding_batch([]) == []


async def test_small_batches_and_several_workers_change_nothing(embedding: STMEmbedding) -> None:
    texts = [f"{TEXT} {number}" for number in range(7)]
    whole = embedding.get_text_embedding_batch(texts)
    small = STMEmbedding(embedder=embedding.embedder, embed_batch_size=2, num_workers=2)
    assert np.allclose(small.get_text_embedding_batch(texts), whole, atol=1e-6)
    assert np.allclose(await small.aget_text_embedding_batch(texts), whole, atol=1e-6)


def test_batches_are_large_unless_the_caller_wants_small_ones(embedding: STMEmbedding) -> None:
    assert embedding.embed_batch_size >= 128


@pytest.mark.parametrize("name", ["aget_query_embedding", "aget_text_embedding", "aget_text_embedding_batch"])
async def test_the_event_loop_goes_on_while_a_text_is_embedded(tiny_onnx_retriever: Path, name: str) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    work = getattr(STMEmbedding(embedder=embedder), name)
    await finishes_beside_a_heartbeat(embedder, work([TEXT] if name.endswith("batch") else TEXT))


class Recorder(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)


async def test_each_getter_sends_the_events_that_llama_index_sends(embedding: STMEmbedding) -> None:
    recorder, root = Recorder(), get_dispatcher("root")
    root.add_event_handler(recorder)
    try:
        query = embedding.get_query_embedding(TEXT)
        await embedding.aget_query_embedding(TEXT)
        text = embedding.get_text_embedding(TEXT)
        await embedding.aget_text_embedding(TEXT)
    finally:
        root.event_handlers.remove(recorder)
    assert [type(event) for event in recorder.seen] == [EmbeddingStartEvent, EmbeddingEndEvent] * 4
    ends = [event for event in recorder.seen if isinstance(event, EmbeddingEndEvent)]
    assert [event.chunks for event in ends] == [[TEXT]] * 4
    assert [event.embeddings for event in ends] == [[query], [query], [text], [text]]
    assert recorder.seen[0].model_dict["class_name"] == "STMEmbedding"


def test_callbacks_hear_of_texts_and_vectors(tiny_embedder: Embedder) -> None:
    listener = LlamaDebugHandler(print_trace_on_end=False)
    embedding = STMEmbedding(embedder=tiny_embedder, callback_manager=CallbackManager([listener]))
    vector = embedding.get_query_embedding(TEXT)
    ((_, end),) = listener.get_event_pairs(CBEventType.EMBEDDING)
    assert end.payload == {EventPayload.CHUNKS: [TEXT], EventPayload.EMBEDDINGS: [vector]}


class CountingLimiter:
    """Stands in for LlamaIndex's rate limiter."""

    def __init__(self) -> None:
        self.count = 0

    def acquire(self) -> None:
        self.count += 1

    async def async_acquire(self) -> None:
        self.count += 1


async def test_a_rate_limiter_is_asked_once_per_call(tiny_embedder: Embedder) -> None:
    limiter = CountingLimiter()
    embedding = STMEmbedding(embedder=tiny_embedder, rate_limiter=limiter)
    embedding.get_query_embedding(TEXT)
    await embedding.aget_text_embedding(TEXT)
    embedding.get_text_embedding_batch([TEXT, "sea"])
    await embedding.aget_text_embedding_batch([TEXT, "sea"])
    assert limiter.count == 4


def test_class_name_is_the_one_that_llama_index_serialises() -> None:
    assert STMEmbedding.class_name() == "STMEmbedding"


def test_dictionary_and_json_carry_it_to_another_process(embedding: STMEmbedding) -> None:
    saved = json.loads(json.dumps(embedding.to_dict()))
    assert (saved["class_name"], saved["fingerprint"]) == ("STMEmbedding", embedding.embedder.fingerprint)
    for copy in (STMEmbedding.from_dict(saved), STMEmbedding.from_json(embedding.to_json())):
        assert copy.get_query_embedding(TEXT) == embedding.get_query_embedding(TEXT)
        assert copy.to_dict() == embedding.to_dict()


def test_a_pickled_copy_gives_the_same_vectors(embedding: STMEmbedding) -> None:
    copy = pickle.loads(pickle.dumps(embedding))
    assert copy.get_query_embedding(TEXT) == embedding.get_query_embedding(TEXT)
    assert copy.get_text_embedding(TEXT) == embedding.get_text_embedding(TEXT)


def test_a_loaded_embedder_survives_serialising(tiny_embedder: Embedder) -> None:
    embedding = STMEmbedding(embedder=tiny_embedder, embed_batch_size=3)
    assert embedding.embedder is tiny_embedder
    copy = STMEmbedding.from_dict(embedding.to_dict())
    assert copy.embed_batch_size == 3
    assert copy.get_query_embedding(TEXT) == embedding.get_query_embedding(TEXT)


def test_a_saved_embedding_refuses_another_model_in_its_folder(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model", seed=1)
    embedding = STMEmbedding(model_name=folder)
    saved, pickled = embedding.to_dict(), pickle.dumps(embedding)
    shutil.rmtree(folder)
    make_tiny_retriever(folder, seed=2)
    with pytest.raises(ArtifactMismatchError, match="was saved with"):
        STMEmbedding.from_dict(saved)
    with pytest.raises(ArtifactMismatchError, match="was saved with"):
        pickle.loads(pickled)


def test_a_pickled_copy_without_its_folder_fails_at_once(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "gone", seed=1)
    pickled = pickle.dumps(STMEmbedding(model_name=folder))
    shutil.rmtree(folder)
    with pytest.raises(ModelFolderError, match="gone"):
        pickle.loads(pickled)


def test_an_ingestion_cache_tells_a_retrained_model_from_the_old_one(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model", seed=1)
    nodes = [TextNode(text=TEXT)]
    before = get_transformation_hash(nodes, STMEmbedding(model_name=folder))
    assert get_transformation_hash(nodes, STMEmbedding(model_name=folder)) == before
    shutil.rmtree(folder)
    make_tiny_retriever(folder, seed=2)
    assert get_transformation_hash(nodes, STMEmbedding(model_name=folder)) != before


def test_the_model_name_may_come_first(tiny_onnx_retriever: Path) -> None:
    assert STMEmbedding(tiny_onnx_retriever).model_name == str(tiny_onnx_retriever)


def test_a_loaded_embedder_and_a_model_name_contradict_each_other(tiny_embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match=r"model_name, variant.*Pass the one or the other"):
        STMEmbedding(embedder=tiny_embedder, model_name="other", variant="int8")


def test_nothing_to_load_is_an_error() -> None:
    with pytest.raises(ConfigError, match="neither model_name= nor embedder="):
        STMEmbedding()


def test_a_missing_folder_is_named_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no-such-model"):
        STMEmbedding(model_name=tmp_path / "no-such-model")


def test_an_unknown_option_is_named(tiny_onnx_retriever: Path) -> None:
    with pytest.raises(ValidationError, match="query_instruction"):
        STMEmbedding(model_name=tiny_onnx_retriever, query_instruction="find: ")


def test_the_variant_is_passed_on(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "two", variants=("fp32", "w8"))
    assert STMEmbedding(model_name=folder, variant="w8").embedder.variant == "w8"
    with pytest.raises(ConfigError, match=r"int4.*fp32, w8"):
        STMEmbedding(model_name=folder, variant="int4")
