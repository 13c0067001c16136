"""STMEmbeddings: the right prompt for each role, Python floats, an event loop that goes on."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from langchain_stm import STMEmbeddings
from stm_retriever import ConfigError, DataError, Embedder, ModelFolderError
from tests.contract.waiting_embedder import WaitingEmbedder, finishes_beside_a_heartbeat
from tests.tiny_retriever import make_tiny_retriever

TEXT = "a red apple"


@pytest.fixture
def embeddings(tiny_onnx_retriever: Path) -> STMEmbeddings:
    return STMEmbeddings(model=str(tiny_onnx_retriever), threads=1)


def test_a_query_gets_the_query_prompt(embeddings: STMEmbeddings, tiny_embedder: Embedder) -> None:
    assert embeddings.embed_query(TEXT) == tiny_embedder.encode_query([TEXT])[0].tolist()
    as_document = tiny_embedder.encode_document([TEXT])[0].tolist()
    assert embeddings.embed_query(TEXT) != pytest.approx(as_document, abs=1e-2)


def test_documents_get_the_document_prompt(embeddings: STMEmbeddings, tiny_embedder: Embedder) -> None:
    texts = [TEXT, "the sea", TEXT]
    assert embeddings.embed_documents(texts) == tiny_embedder.encode_document(texts).tolist()


async def test_the_asynchronous_methods_give_the_same_vectors(embeddings: STMEmbeddings) -> None:
    assert await embeddings.aembed_query(TEXT) == embeddings.embed_query(TEXT)
    assert await embeddings.aembed_documents([TEXT]) == embeddings.embed_documents([TEXT])


def test_vectors_are_python_floats_of_length_one(embeddings: STMEmbeddings) -> None:
    query, (document,) = embeddings.embed_query(TEXT), embeddings.embed_documents([TEXT])
    assert {type(value) for value in (*query, *document)} == {float}
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(document) == pytest.approx(1, abs=1e-6)


def test_no_documents_give_no_vectors(embeddings: STMEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []


async def test_the_event_loop_goes_on_while_a_query_is_embedded(tiny_onnx_retriever: Path) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    await finishes_beside_a_heartbeat(embedder, STMEmbeddings(embedder=embedder).aembed_query(TEXT))


async def test_the_event_loop_goes_on_while_documents_are_embedded(tiny_onnx_retriever: Path) -> None:
    embedder = WaitingEmbedder(tiny_onnx_retriever)
    await finishes_beside_a_heartbeat(embedder, STMEmbeddings(embedder=embedder).aembed_documents([TEXT]))


def test_a_langchain_vector_store_ranks_as_the_embedder_does(
    embeddings: STMEmbeddings, tiny_embedder: Embedder
) -> None:
    texts = ["A red apple is a fruit.", "The train is red.", "Fever and cough."]
    store = InMemoryVectorStore.from_documents([Document(page_content=text) for text in texts], embeddings)
    found = store.similarity_search_with_score(TEXT, k=3)
    cosines = tiny_embedder.encode_document(texts) @ tiny_embedder.encode_query([TEXT])[0]
    assert [document.page_content for document, _ in found] == [texts[i] for i in np.argsort(-cosines)]
    assert [score for _, score in found] == pytest.approx(sorted(cosines.tolist(), reverse=True), abs=1e-6)


def test_a_loaded_embedder_is_taken_as_it_is(tiny_embedder: Embedder) -> None:
    embeddings = STMEmbeddings(embedder=tiny_embedder)
    assert embeddings.embedder is tiny_embedder
    assert embeddings.model == str(tiny_embedder.path)


def test_a_loaded_embedder_and_a_model_name_contradict_each_other(tiny_embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match=r"model, variant.*Pass the one or the other"):
        STMEmbeddings(embedder=tiny_embedder, model="other", variant="int8")


def test_nothing_to_load_is_an_error() -> None:
    with pytest.raises(ConfigError, match="neither model= nor embedder="):
        STMEmbeddings()


def test_a_missing_folder_is_named_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no-such-model"):
        STMEmbeddings(model=tmp_path / "no-such-model")


def test_an_unknown_option_is_named(tiny_onnx_retriever: Path) -> None:
    with pytest.raises(ValidationError, match="normalise"):
        STMEmbeddings(model=tiny_onnx_retriever, normalise=True)


def test_the_variant_is_passed_on(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "two", variants=("fp32", "w8"))
    assert STMEmbeddings(model=folder, variant="w8").embedder.variant == "w8"
    with pytest.raises(ConfigError, match=r"int4.*fp32, w8"):
        STMEmbeddings(model=folder, variant="int4")


def test_an_empty_query_is_an_error_not_a_vector(embeddings: STMEmbeddings) -> None:
    with pytest.raises(DataError, match="empty"):
        embeddings.embed_query(" ")


def test_a_pickled_copy_gives_the_same_vectors(embeddings: STMEmbeddings) -> None:
    copy = pickle.loads(pickle.dumps(embeddings))
    assert copy.embed_query(TEXT) == embeddings.embed_query(TEXT)
    assert copy.embed_documents([TEXT]) == embeddings.embed_documents([TEXT])
