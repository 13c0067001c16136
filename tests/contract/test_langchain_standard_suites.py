"""LangChain's own standard suites, whole: nothing overridden, nothing expected to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_stm import STMEmbeddings, STMRetriever, STMVectorStore
from stm_retriever import Embedder
from tests.contract.fruit_index import QUESTION, make_fruit_index


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True)
    def model_folder(self, tiny_onnx_retriever: Path) -> None:
        self.folder = str(tiny_onnx_retriever)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return STMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "threads": 1}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def model_folder(self, tiny_onnx_retriever: Path) -> None:
        self.folder = str(tiny_onnx_retriever)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return STMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.folder, "threads": 1}


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def index_folder(self, tmp_path: Path, tiny_embedder: Embedder) -> None:
        self.folder = str(make_fruit_index(tmp_path / "fruit", tiny_embedder))

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return STMRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.folder}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class TestVectorStore(VectorStoreIntegrationTests):
    """Synchronous and asynchronous, on the embeddings that the suite brings."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with STMVectorStore(tmp_path / "index", self.get_embeddings()) as store:
            yield store


class TestVectorStoreWithOurEmbeddings(VectorStoreIntegrationTests):
    """On a retriever folder, whose queries and documents get different vectors."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path, tiny_embedder: Embedder) -> Iterator[VectorStore]:
        with STMVectorStore(tmp_path / "index", STMEmbeddings(embedder=tiny_embedder)) as store:
            yield store
