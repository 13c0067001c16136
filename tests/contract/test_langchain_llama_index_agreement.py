"""One index, three doors: Retriever, LangChain and LlamaIndex give the same hits and the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_stm import STMEmbeddings
from langchain_stm import STMRetriever as LangChainRetriever
from llama_index.embeddings.stm import STMEmbedding
from llama_index.retrievers.stm import STMRetriever as LlamaIndexRetriever
from stm_retriever import Embedder, Retriever
from tests.contract.fruit_index import make_fruit_index

QUESTIONS = ("what about a red apple", "how to treat fever in a child", "is the train in the city")


@pytest.fixture
def index(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    return make_fruit_index(tmp_path / "fruit", tiny_embedder)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("k", [1, 3, 50])
async def test_hits_and_scores_are_the_same_through_every_door(index: Path, question: str, k: int) -> None:
    with Retriever.open(index, read_only=True) as retriever:
        expected = [(hit.id, hit.score, hit.text) for hit in retriever.search(question, k)]
        assert [(hit.id, hit.score, hit.text) for hit in await retriever.asearch(question, k)] == expected
    langchain = LangChainRetriever(index=index, k=k)
    for documents in (langchain.invoke(question), await langchain.ainvoke(question)):
        found = [(item.id, item.metadata["score"], item.page_content) for item in documents]
        assert found == expected
    llama_index = LlamaIndexRetriever(index=index, similarity_top_k=k)
    for nodes in (llama_index.retrieve(question), await llama_index.aretrieve(question)):
        assert [(item.node.node_id, item.score, item.text) for item in nodes] == expected


@pytest.mark.parametrize("question", QUESTIONS)
def test_both_frameworks_embed_alike(tiny_onnx_retriever: Path, question: str) -> None:
    langchain, llama_index = STMEmbeddings(model=tiny_onnx_retriever), STMEmbedding(tiny_onnx_retriever)
    assert langchain.embed_query(question) == llama_index.get_query_embedding(question)
    assert langchain.embed_documents([question]) == llama_index.get_text_embedding_batch([question])
    as_document = langchain.embed_documents([question])[0]
    assert langchain.embed_query(question) != pytest.approx(as_document, abs=1e-2)
