"""LlamaIndex's own machinery runs on our classes: vector index, query engine, ingestion; sync and async."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index.embeddings.stm import STMEmbedding
from llama_index.retrievers.stm import STMRetriever
from stm_retriever import Embedder
from tests.contract.fruit_index import DOCUMENTS, QUESTION, make_fruit_index


@pytest.fixture
def embedding(tiny_embedder: Embedder) -> STMEmbedding:
    return STMEmbedding(embedder=tiny_embedder)


@pytest.fixture
def retriever(tmp_path: Path, tiny_embedder: Embedder) -> STMRetriever:
    return STMRetriever(index=make_fruit_index(tmp_path / "fruit", tiny_embedder), similarity_top_k=3)


def nodes() -> list[TextNode]:
    return [TextNode(id_=document.id, text=document.text) for document in DOCUMENTS]


def cosines(embedder: Embedder) -> dict[str, float]:
    scores = (
        embedder.encode_document([item.text for item in DOCUMENTS]) @ embedder.encode_query([QUESTION])[0]
    )
    return dict(zip((item.id for item in DOCUMENTS), scores.tolist(), strict=True))


@pytest.mark.parametrize("with_cache", [False, True])
async def test_a_vector_store_index_scores_queries_against_documents(
    tiny_embedder: Embedder, with_cache: bool
) -> None:
    cache = SimpleKVStore() if with_cache else None
    embedding = STMEmbedding(embedder=tiny_embedder, embeddings_cache=cache)
    # The question is in the cache as a document: it must not be searched with that vector.
    index = VectorStoreIndex([*nodes(), TextNode(id_="same", text=QUESTION)], embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=10)
    for found in (retriever.retrieve(QUESTION), await retriever.aretrieve(QUESTION)):
        scores = {item.node.node_id: item.score for item in found}
        assert (scores.pop("same") or 0) < 1 - 1e-4
        assert scores == pytest.approx(cosines(tiny_embedder), abs=1e-6)


async def test_an_index_that_embeds_asynchronously_gives_the_same_scores(tiny_embedder: Embedder) -> None:
    index = VectorStoreIndex(nodes(), embed_model=STMEmbedding(embedder=tiny_embedder), use_async=True)
    found = await index.as_retriever(similarity_top_k=10).aretrieve(QUESTION)
    assert {item.node.node_id: item.score for item in found} == pytest.approx(
        cosines(tiny_embedder), abs=1e-6
    )


def test_a_saved_vector_store_index_is_searched_with_the_same_model(
    embedding: STMEmbedding, tmp_path: Path
) -> None:
    VectorStoreIndex(nodes(), embed_model=embedding).storage_context.persist(str(tmp_path / "saved"))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "saved"))
    index = load_index_from_storage(context, embed_model=STMEmbedding(embedder=embedding.embedder))
    best = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0]
    assert best.score == pytest.approx(max(cosines(embedding.embedder).values()), abs=1e-6)


def test_the_global_embedding_model_may_be_ours(
    embedding: STMEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    assert VectorStoreIndex(nodes()).as_retriever(similarity_top_k=1).retrieve(QUESTION)


async def test_a_query_engine_answers_from_our_nodes(retriever: STMRetriever) -> None:
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert [item.node.node_id for item in response.source_nodes] == [
            item.node.node_id for item in retriever.retrieve(QUESTION)
        ]
        # The stand-in model repeats its prompt.
        assert QUESTION in str(response)
        assert response.source_nodes[0].text in str(response)


async def test_a_query_transform_reaches_the_search(retriever: STMRetriever) -> None:
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    hypothetical = TransformQueryEngine(engine, HyDEQueryTransform(llm=MockLLM(), include_original=False))
    plain = [item.score for item in engine.query(QUESTION).source_nodes]
    assert [item.score for item in hypothetical.query(QUESTION).source_nodes] != plain


async def test_an_ingestion_pipeline_embeds_documents(embedding: STMEmbedding) -> None:
    pipeline = IngestionPipeline(transformations=[embedding])
    expected = embedding.embedder.encode_document([DOCUMENTS[0].text])[0].tolist()
    for result in (
        pipeline.run(documents=[Document(text=DOCUMENTS[0].text)]),
        await pipeline.arun(documents=[Document(text=DOCUMENTS[0].text)]),
    ):
        assert [node.embedding for node in result] == [expected]
