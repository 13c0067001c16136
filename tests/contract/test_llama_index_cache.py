"""LlamaIndex's embeddings cache under STMEmbedding: it saves work, and never mixes roles or models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index.embeddings.stm import STMEmbedding
from stm_retriever import Embedder
from stm_retriever.embedder import Progress, Vectors
from stm_retriever.folder import Prompts, read_manifest
from tests.tiny_retriever import make_tiny_retriever

TEXT = "a red apple"
Vector = list[float]
Getter = Callable[[STMEmbedding, str], Awaitable[Vector]]


def same_as(vectors: Vectors) -> Any:
    """Equal but for the rounding that other texts in the batch bring; the two roles differ by far more."""
    return pytest.approx(vectors[0].tolist(), abs=1e-6)


class CountingEmbedder(Embedder):
    """Counts the texts that really are encoded."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, read_manifest(path), threads=1, **options)
        self.encoded: list[tuple[str, str]] = []

    def encode_query(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        self.encoded += [("query", text) for text in texts]
        return super().encode_query(texts, show_progress=show_progress)

    def encode_document(self, texts: Sequence[str], *, show_progress: Progress = False) -> Vectors:
        self.encoded += [("document", text) for text in texts]
        return super().encode_document(texts, show_progress=show_progress)


@pytest.fixture
def cache() -> SimpleKVStore:
    return SimpleKVStore()


@pytest.fixture
def embedder(tiny_onnx_retriever: Path) -> CountingEmbedder:
    return CountingEmbedder(tiny_onnx_retriever)


@pytest.fixture
def embedding(embedder: CountingEmbedder, cache: SimpleKVStore) -> STMEmbedding:
    return STMEmbedding(embedder=embedder, embeddings_cache=cache)


async def query(embedding: STMEmbedding, text: str) -> Vector:
    return embedding.get_query_embedding(text)


async def aquery(embedding: STMEmbedding, text: str) -> Vector:
    return await embedding.aget_query_embedding(text)


async def query_mean(embedding: STMEmbedding, text: str) -> Vector:
    return embedding.get_agg_embedding_from_queries([text])


async def aquery_mean(embedding: STMEmbedding, text: str) -> Vector:
    return await embedding.aget_agg_embedding_from_queries([text])


async def document(embedding: STMEmbedding, text: str) -> Vector:
    return embedding.get_text_embedding(text)


async def adocument(embedding: STMEmbedding, text: str) -> Vector:
    return await embedding.aget_text_embedding(text)


async def batch(embedding: STMEmbedding, text: str) -> Vector:
    return embedding.get_text_embedding_batch(["the sea", text])[1]


async def abatch(embedding: STMEmbedding, text: str) -> Vector:
    return (await embedding.aget_text_embedding_batch(["the sea", text]))[1]


QUERY_GETTERS = [query, aquery, query_mean, aquery_mean]
DOCUMENT_GETTERS = [document, adocument, batch, abatch]


def test_the_two_roles_differ_enough_to_be_told_apart(embedder: Embedder) -> None:
    assert abs(embedder.encode_query([TEXT]) - embedder.encode_document([TEXT])).max() > 1e-2


@pytest.mark.parametrize("get_document", DOCUMENT_GETTERS)
@pytest.mark.parametrize("get_query", QUERY_GETTERS)
@pytest.mark.parametrize("query_first", [True, False])
async def test_neither_role_gets_the_vector_that_the_other_one_cached(
    embedding: STMEmbedding, embedder: Embedder, get_query: Getter, get_document: Getter, query_first: bool
) -> None:
    for getter in (get_query, get_document) if query_first else (get_document, get_query):
        await getter(embedding, TEXT)
    for _ in range(2):  # what is cached by now, too
        assert await get_query(embedding, TEXT) == same_as(embedder.encode_query([TEXT]))
        assert await get_document(embedding, TEXT) == same_as(embedder.encode_document([TEXT]))


@pytest.mark.parametrize("again", QUERY_GETTERS)
@pytest.mark.parametrize("first", QUERY_GETTERS)
async def test_a_query_is_encoded_once_by_whatever_way_it_comes(
    embedding: STMEmbedding, embedder: CountingEmbedder, first: Getter, again: Getter
) -> None:
    assert await first(embedding, TEXT) == await again(embedding, TEXT)
    assert embedder.encoded == [("query", TEXT)]


@pytest.mark.parametrize("again", DOCUMENT_GETTERS)
@pytest.mark.parametrize("first", DOCUMENT_GETTERS)
async def test_a_document_is_encoded_once_by_whatever_way_it_comes(
    embedding: STMEmbedding, embedder: CountingEmbedder, first: Getter, again: Getter
) -> None:
    assert await first(embedding, TEXT) == await again(embedding, TEXT)
    assert embedder.encoded.count(("document", TEXT)) == 1


async def test_a_batch_encodes_only_what_is_missing_and_keeps_the_order(
    embedding: STMEmbedding, embedder: CountingEmbedder
) -> None:
    embedding.get_text_embedding_batch(["one", "two"])
    embedder.encoded.clear()
    texts = ["three", "two", "four", "one", "three"]
    vectors = embedding.get_text_embedding_batch(texts)
    assert embedder.encoded == [("document", "three"), ("document", "four")]
    assert await embedding.aget_text_embedding_batch(texts) == vectors
    assert len(embedder.encoded) == 2
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == same_as(embedder.encode_document([text]))


@pytest.mark.parametrize("getter", QUERY_GETTERS + DOCUMENT_GETTERS)
async def test_two_models_may_share_one_cache(
    embedding: STMEmbedding, cache: SimpleKVStore, tmp_path: Path, getter: Getter
) -> None:
    other = STMEmbedding(model_name=make_tiny_retriever(tmp_path / "other", seed=5), embeddings_cache=cache)
    await getter(embedding, TEXT)
    uncached = STMEmbedding(embedder=other.embedder)
    assert await getter(other, TEXT) == pytest.approx(await getter(uncached, TEXT), abs=1e-6)
    assert await getter(other, TEXT) != pytest.approx(await getter(embedding, TEXT), abs=1e-2)


def test_the_same_weights_under_another_prompt_are_another_model(
    embedding: STMEmbedding, cache: SimpleKVStore, tmp_path: Path
) -> None:
    folder = make_tiny_retriever(tmp_path / "other", prompts=Prompts(query="blue ", document="passage: "))
    other = STMEmbedding(model_name=folder, embeddings_cache=cache)
    embedding.get_query_embedding(TEXT)
    assert other.get_query_embedding(TEXT) == same_as(other.embedder.encode_query([TEXT]))


def test_variants_of_one_model_do_not_share_vectors(cache: SimpleKVStore, tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "two", variants=("fp32", "w8"))
    STMEmbedding(model_name=folder, embeddings_cache=cache).get_query_embedding(TEXT)
    eight_bit = CountingEmbedder(folder, variant="w8")
    STMEmbedding(embedder=eight_bit, embeddings_cache=cache).get_query_embedding(TEXT)
    assert eight_bit.encoded == [("query", TEXT)]


def test_the_same_model_elsewhere_finds_what_was_cached(cache: SimpleKVStore, tmp_path: Path) -> None:
    here, there = (make_tiny_retriever(tmp_path / name, name="same") for name in ("here", "there"))
    STMEmbedding(model_name=here, embeddings_cache=cache).get_query_embedding(TEXT)
    moved = CountingEmbedder(there)
    STMEmbedding(embedder=moved, embeddings_cache=cache).get_query_embedding(TEXT)
    assert moved.encoded == []


async def test_vectors_that_stock_classes_cached_are_left_alone(
    embedding: STMEmbedding, cache: SimpleKVStore, embedder: Embedder
) -> None:
    cache.put(key=TEXT, val={"somebody": [0.0] * embedder.dimension}, collection="embeddings")
    assert embedding.get_query_embedding(TEXT) == same_as(embedder.encode_query([TEXT]))
    assert cache.get(key=TEXT, collection="embeddings") == {"somebody": [0.0] * embedder.dimension}


def test_the_users_store_is_the_one_that_fills_and_can_be_saved(
    embedding: STMEmbedding, cache: SimpleKVStore, embedder: CountingEmbedder, tmp_path: Path
) -> None:
    assert embedding.embeddings_cache is cache
    vector = embedding.get_query_embedding(TEXT)
    assert len(cache.get_all(collection="embeddings")) == 1
    cache.persist(str(tmp_path / "cache.json"))
    embedder.encoded.clear()
    reloaded = SimpleKVStore.from_persist_path(str(tmp_path / "cache.json"))
    assert STMEmbedding(embedder=embedder, embeddings_cache=reloaded).get_query_embedding(TEXT) == vector
    assert embedder.encoded == []


def test_a_cache_that_is_set_later_is_used_in_the_same_way(
    embedder: CountingEmbedder, cache: SimpleKVStore
) -> None:
    embedding = STMEmbedding(embedder=embedder)
    embedding.embeddings_cache = cache
    embedding.get_text_embedding(TEXT)
    assert embedding.get_query_embedding(TEXT) == embedding.get_query_embedding(TEXT)
    assert embedder.encoded == [("document", TEXT), ("query", TEXT)]


def test_a_caller_who_changes_a_vector_does_not_change_the_cache(embedding: STMEmbedding) -> None:
    first = embedding.get_query_embedding(TEXT)
    original = list(first)
    first[0] = 99.0
    embedding.get_query_embedding(TEXT)[0] = 99.0
    assert embedding.get_query_embedding(TEXT) == original


@pytest.mark.parametrize("value", [{"embedding": [1.0]}, {"embedding": "text"}, {}])
def test_a_damaged_entry_is_encoded_anew(
    embedding: STMEmbedding, cache: SimpleKVStore, embedder: Embedder, value: dict[str, Any]
) -> None:
    embedding.get_query_embedding(TEXT)
    (key,) = cache.get_all(collection="embeddings")
    cache.put(key=key, val=value, collection="embeddings")
    assert embedding.get_query_embedding(TEXT) == same_as(embedder.encode_query([TEXT]))


def test_the_rate_limiter_is_not_asked_for_what_is_cached(embedder: Embedder, cache: SimpleKVStore) -> None:
    class Limiter:
        count = 0

        def acquire(self) -> None:
            self.count += 1

    limiter = Limiter()
    embedding = STMEmbedding(embedder=embedder, embeddings_cache=cache, rate_limiter=limiter)
    embedding.get_query_embedding(TEXT)
    embedding.get_query_embedding(TEXT)
    assert limiter.count == 1


def test_no_method_of_llama_index_that_reads_or_writes_the_cache_is_inherited() -> None:
    """If a new LlamaIndex reaches its cache by another way, this fails, rather than a user's search."""
    access = re.compile(r"embeddings_cache\s*\.\s*a?(get|put)")
    reaching = [
        name
        for name, member in vars(BaseEmbedding).items()
        if inspect.isfunction(member) and access.search(inspect.getsource(inspect.unwrap(member)))
    ]
    assert "get_query_embedding" in reaching
    assert [name for name in reaching if name not in vars(STMEmbedding)] == []
