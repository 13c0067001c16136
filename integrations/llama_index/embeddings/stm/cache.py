"""Vectors in a LlamaIndex key-value store, under keys that name model and role.

LlamaIndex itself takes the bare text as the key, for queries and documents and for every model alike
(0.14.25), so that a query would get the vector of a document with the same text, or of another model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.storage.kvstore.types import BaseKVStore

from stm_retriever import Embedder
from stm_retriever.types import Role

COLLECTION = "embeddings"
"""The collection that LlamaIndex's own embedding models use, so that one store serves all."""

_VALUE = "embedding"


def cache_key(embedder: Embedder, role: Role, text: str) -> str:
    """Name everything that the vector of a text depends on.

    Returns:
        Fingerprint, variant, dimension, role, hash of the role's prompt, hash of the text, with slashes.
    """
    parts = (
        "stm",
        embedder.fingerprint,
        embedder.variant,
        str(embedder.dimension),
        role,
        _sha256(embedder.prompts.of(role)),
        _sha256(text),
    )
    return "/".join(parts)


def through_cache(
    store: BaseKVStore,
    embedder: Embedder,
    role: Role,
    texts: Sequence[str],
    encode: Callable[[list[str]], list[Embedding]],
) -> list[Embedding]:
    """Take vectors from the store and encode what is not there, each distinct text once.

    Args:
        store: The user's store.
        embedder: Whose vectors.
        role: Which prompt they were or will be encoded with.
        texts: n texts.
        encode: Called at most once, with the texts that are missing.

    Returns:
        n vectors, in the order of the texts.
    """
    keys = [cache_key(embedder, role, text) for text in texts]
    found = {key: store.get(key=key, collection=COLLECTION) for key in dict.fromkeys(keys)}
    vectors = _usable(found, embedder.dimension)
    missing = _missing(keys, texts, vectors)
    if missing:
        for key, vector in zip(missing, encode(list(missing.values())), strict=True):
            store.put(key=key, val={_VALUE: vector}, collection=COLLECTION)
            vectors[key] = vector
    return [list(vectors[key]) for key in keys]


async def athrough_cache(
    store: BaseKVStore,
    embedder: Embedder,
    role: Role,
    texts: Sequence[str],
    encode: Callable[[list[str]], Awaitable[list[Embedding]]],
) -> list[Embedding]:
    """Do what :func:`through_cache` does, with the store's and the encoder's asynchronous methods."""
    keys = [cache_key(embedder, role, text) for text in texts]
    found = {key: await store.aget(key=key, collection=COLLECTION) for key in dict.fromkeys(keys)}
    vectors = _usable(found, embedder.dimension)
    missing = _missing(keys, texts, vectors)
    if missing:
        for key, vector in zip(missing, await encode(list(missing.values())), strict=True):
            await store.aput(key=key, val={_VALUE: vector}, collection=COLLECTION)
            vectors[key] = vector
    return [list(vectors[key]) for key in keys]


def _usable(found: Mapping[str, Any], dimension: int) -> dict[str, Embedding]:
    """Keep what is a vector of the right length; a store is a file that others may have written."""
    vectors = {key: value.get(_VALUE) for key, value in found.items() if isinstance(value, dict)}
    return {
        key: vector
        for key, vector in vectors.items()
        if isinstance(vector, list) and len(vector) == dimension
    }


def _missing(keys: list[str], texts: Sequence[str], vectors: Mapping[str, Embedding]) -> dict[str, str]:
    return {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}


def _sha256(text: str) -> str:
    # A lone surrogate is no valid text; the encoder says so, with a better message than the hash could.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
