"""Our embedding classes in a vector database of others: Qdrant, embedded in this process.

Hits and scores must be those of our own index; ids, metadata and filters go through each framework's own class.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import Document, Embedder, Retriever
from tests.contract.fruit_index import DOCUMENTS, QUESTION

qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")

IDS = {document.id: str(uuid.uuid5(uuid.NAMESPACE_URL, document.id)) for document in DOCUMENTS}
NAMES = {given: name for name, given in IDS.items()}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    opened = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    yield opened
    opened.close()


@pytest.fixture
def expected(tmp_path: Path, tiny_embedder: Embedder) -> list[tuple[str, float]]:
    with Retriever.create(tmp_path / "ours", embedder=tiny_embedder) as retriever:
        retriever.add(Document(id=item.id, text=item.text) for item in DOCUMENTS)
        return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in retriever.search(QUESTION)]


def test_langchains_qdrant_ranks_by_our_embeddings_as_our_index_does(
    client: Any, tiny_embedder: Embedder, expected: list[tuple[str, float]]
) -> None:
    module = pytest.importorskip("langchain_qdrant", reason="langchain-qdrant is not installed")
    from langchain_stm import STMEmbeddings

    size = qdrant_client.models.VectorParams(
        size=tiny_embedder.dimension, distance=qdrant_client.models.Distance.COSINE
    )
    client.create_collection("fruit", vectors_config=size)
    store = module.QdrantVectorStore(client, "fruit", embedding=STMEmbeddings(embedder=tiny_embedder))
    store.add_texts(
        [item.text for item in DOCUMENTS],
        [{"year": item.metadata.get("year", 0)} for item in DOCUMENTS],
        ids=[IDS[item.id] for item in DOCUMENTS],
    )
    found = store.similarity_search_with_score(QUESTION, k=5)
    assert [(NAMES[document.metadata["_id"]], score) for document, score in found] == expected
    assert found[0][0].metadata["year"] == 2020
    top = store.as_retriever(search_type="mmr", search_kwargs={"k": 1}).invoke(QUESTION)
    assert top[0].page_content == DOCUMENTS[0].text


async def test_langchains_qdrant_takes_our_embeddings_asynchronously(
    client: Any, tiny_embedder: Embedder, expected: list[tuple[str, float]]
) -> None:
    module = pytest.importorskip("langchain_qdrant", reason="langchain-qdrant is not installed")
    from langchain_stm import STMEmbeddings

    size = qdrant_client.models.VectorParams(
        size=tiny_embedder.dimension, distance=qdrant_client.models.Distance.COSINE
    )
    client.create_collection("fruit", vectors_config=size)
    store = module.QdrantVectorStore(client, "fruit", embedding=STMEmbeddings(embedder=tiny_embedder))
    await store.aadd_texts([item.text for item in DOCUMENTS], ids=[IDS[item.id] for item in DOCUMENTS])
    found = await store.asimilarity_search_with_score(QUESTION, k=5)
    assert [(NAMES[document.metadata["_id"]], score) for document, score in found] == expected


def test_llama_indexes_qdrant_ranks_by_our_embeddings_as_our_index_does(
    client: Any, tiny_embedder: Embedder, expected: list[tuple[str, float]]
) -> None:
    module = pytest.importorskip(
        "llama_index.vector_stores.qdrant", reason="llama-index-vector-stores-qdrant is not installed"
    )
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

    from llama_index.embeddings.stm import STMEmbedding

    context = StorageContext.from_defaults(
        vector_store=module.QdrantVectorStore(client=client, collection_name="fruit")
    )
    nodes = [
        TextNode(
            id_=IDS[item.id],
            text=item.text,
            metadata={"kind": "part" if item.parent_id else "whole"},
            excluded_embed_metadata_keys=["kind"],
        )
        for item in DOCUMENTS
    ]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=STMEmbedding(embedder=tiny_embedder))
    found = index.as_retriever(similarity_top_k=5).retrieve(QUESTION)
    assert [(NAMES[item.node.node_id], item.score) for item in found] == expected
    parts = MetadataFilters(filters=[MetadataFilter(key="kind", value="part")])
    narrowed = index.as_retriever(similarity_top_k=5, filters=parts).retrieve(QUESTION)
    assert {NAMES[item.node.node_id] for item in narrowed} == {"train", "car"}
