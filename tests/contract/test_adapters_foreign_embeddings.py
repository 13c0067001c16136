"""Embeddings that are not ours: known by a name, or by their class and where they put two probe texts."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from llama_index.core.embeddings import MockEmbedding

from langchain_stm import STMVectorStore
from llama_index.vector_stores.stm import STMVectorStore as LlamaIndexStore
from stm_retriever import ArtifactMismatchError, ConfigError, DataError, Document, ModelFolderError, Retriever
from stm_retriever.foreign import ForeignEmbedder, same_embedder, simhash

TEXTS = ["a red apple", "a green pear", "snow on the mountain"]
DOCUMENTS = [Document(id=text.split()[-1], text=text) for text in TEXTS]


class Hashing:
    """Somebody's encoder: a random vector per word, seeded by the word; queries in another space."""

    def __init__(self, salt: str = "", dimension: int = 16, noise: float = 0.0, length: float = 3.0) -> None:
        self.salt, self.dimension, self.noise, self.length = salt, dimension, noise, length

    def encode_query(self, texts: Sequence[str]) -> Any:
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str]) -> Any:
        return self._encode(texts, "document")

    def _encode(self, texts: Sequence[str], role: str) -> np.ndarray:
        rows = [
            sum((self._word(word, role) for word in text.split()), np.zeros(self.dimension)) for text in texts
        ]
        shaken = np.array(rows) + self.noise * np.random.default_rng().standard_normal(
            (len(texts), self.dimension)
        )
        return self.length * shaken

    def _word(self, word: str, role: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(f"{self.salt}{word}".encode()).digest()[:8], "big")
        vector = np.random.default_rng(seed).standard_normal(self.dimension)
        return vector + (0.2 if role == "query" else 0.0)


class Another(Hashing):
    pass


def test_any_object_with_the_two_methods_makes_an_index_and_searches_it(tmp_path: Path) -> None:
    with Retriever.create(tmp_path / "index", embedder=Hashing()) as retriever:
        assert retriever.add(DOCUMENTS) == 3
        assert retriever.search("red apple", k=1)[0].id == "apple"
        assert retriever.manifest.embedder.path is None
        assert np.linalg.norm(retriever.vectors_of(["pear"])) == pytest.approx(1.0, abs=1e-6)


def test_the_same_embedder_opens_it_again_and_no_other(tmp_path: Path) -> None:
    with Retriever.create(tmp_path / "index", embedder=Hashing()) as retriever:
        retriever.add(DOCUMENTS)
    with Retriever.open(tmp_path / "index", embedder=Hashing()) as again:
        assert again.search("green pear", k=1)[0].id == "pear"
    for stranger in (Hashing(salt="v2"), Another(), Hashing(dimension=8)):
        with pytest.raises(ArtifactMismatchError, match=r"Hashing.*was made with|was made with.*Hashing"):
            Retriever.open(tmp_path / "index", embedder=stranger)


def test_rounding_noise_is_no_other_model(tmp_path: Path) -> None:
    with Retriever.create(tmp_path / "index", embedder=Hashing()):
        pass
    Retriever.open(tmp_path / "index", embedder=Hashing(noise=1e-5)).close()
    Retriever.open(tmp_path / "index", embedder=Hashing(length=0.5)).close()


def test_an_id_stands_for_the_embedder_whatever_its_class(tmp_path: Path) -> None:
    with Retriever.create(tmp_path / "index", embedder=Hashing(), embedder_id="hashing@1") as retriever:
        assert retriever.manifest.embedder.fingerprint == "id:hashing@1"
    Retriever.open(tmp_path / "index", embedder=Another(), embedder_id="hashing@1").close()
    with pytest.raises(ArtifactMismatchError, match="hashing@1"):
        Retriever.open(tmp_path / "index", embedder=Hashing(), embedder_id="hashing@2")
    with pytest.raises(ArtifactMismatchError, match="embedder_id='hashing@1'"):
        Retriever.open(tmp_path / "index", embedder=Hashing())
    with pytest.raises(ArtifactMismatchError, match="16 dimensions"):
        Retriever.open(tmp_path / "index", embedder=Hashing(dimension=4), embedder_id="hashing@1")


def test_an_index_of_a_foreign_embedder_says_that_it_must_be_given(tmp_path: Path) -> None:
    Retriever.create(tmp_path / "index", embedder=Hashing()).close()
    with pytest.raises(ModelFolderError, match=r"Hashing.*embedder="):
        Retriever.open(tmp_path / "index")


def test_langchain_embeddings_are_known_again_by_store_and_retriever(tmp_path: Path) -> None:
    store = STMVectorStore.from_texts(TEXTS, DeterministicFakeEmbedding(size=12), index=tmp_path / "index")
    assert isinstance(store.embeddings, DeterministicFakeEmbedding)
    store.close()
    with STMVectorStore(tmp_path / "index", DeterministicFakeEmbedding(size=12)) as again:
        assert len(again.similarity_search("apple", k=3)) == 3
    with pytest.raises(ArtifactMismatchError):
        STMVectorStore(tmp_path / "index", DeterministicFakeEmbedding(size=13))
    with pytest.raises(ArtifactMismatchError):
        STMVectorStore(tmp_path / "index", Shifted(size=12))


class Shifted(DeterministicFakeEmbedding):
    def embed_query(self, text: str) -> list[float]:
        return super().embed_query(text + "!")


def test_llama_index_embeddings_are_known_again(tmp_path: Path) -> None:
    with LlamaIndexStore(tmp_path / "index", MockEmbedding(embed_dim=7)) as store:
        assert store.retriever.embedder.dimension == 7
    LlamaIndexStore(tmp_path / "index", MockEmbedding(embed_dim=7)).close()
    with pytest.raises(ArtifactMismatchError):
        LlamaIndexStore(tmp_path / "index", MockEmbedding(embed_dim=8))


def test_an_object_that_is_no_embedder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no encode_query and no encode_document"):
        Retriever.create(tmp_path / "index", embedder=DeterministicFakeEmbedding(size=3))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not LangChain's Embeddings"):
        STMVectorStore(tmp_path / "index", Hashing())  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_an_id_for_one_of_ours_is_refused(tmp_path: Path, tiny_embedder: Any) -> None:
    with pytest.raises(ConfigError, match="fingerprint"):
        Retriever.create(tmp_path / "index", embedder=tiny_embedder, embedder_id="mine")
    with pytest.raises(ConfigError, match="empty"):
        Retriever.create(tmp_path / "index", embedder=Hashing(), embedder_id=" ")


class Broken(Embeddings):
    def __init__(self, documents: Any, query: Any = (1.0, 2.0)) -> None:
        self.documents, self.query = documents, query

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.documents  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.query  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("embeddings", "error", "words"),
    [
        (Broken([[1.0, 2.0, 3.0]]), ConfigError, "one length for both roles"),
        (Broken([[1.0, 2.0], [1.0, 2.0]]), ConfigError, "shape"),
        (Broken([["a", "b"]]), ConfigError, "no matrix"),
        (Broken(None), ConfigError, "shape|no matrix"),
        (Broken([[0.0, 0.0]]), DataError, "length 0"),
        (Broken([[float("nan"), 0.0]]), DataError, "length nan"),
    ],
)
def test_an_embedder_that_gives_no_usable_vectors_makes_no_index(
    tmp_path: Path, embeddings: Embeddings, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        STMVectorStore(tmp_path / "index", embeddings)
    assert not (tmp_path / "index").exists()


def test_a_foreign_embedder_pickles_with_its_encoder() -> None:
    twin = pickle.loads(pickle.dumps(ForeignEmbedder(Hashing())))
    assert twin.fingerprint == ForeignEmbedder(Hashing()).fingerprint
    assert twin.encode_query(["apple"]).shape == (1, 16)


def test_near_directions_share_most_bits_of_their_hash_and_others_half() -> None:
    draw = np.random.default_rng(0)
    vector = draw.standard_normal(384)
    near = vector + 1e-4 * draw.standard_normal(384)
    apart = [
        (int.from_bytes(simhash(vector), "big") ^ int.from_bytes(simhash(other), "big")).bit_count()
        for other in (vector * 7, near, draw.standard_normal(384), -vector)
    ]
    assert apart[0] == 0
    assert apart[1] <= 2
    assert 90 < apart[2] < 166
    assert apart[3] == 256


def test_fingerprints_of_other_forms_are_never_the_same() -> None:
    known = ForeignEmbedder(Hashing()).fingerprint
    for other in ("", "class", known + "0", known.replace("Hashing", "Another"), "sha256:" + "0" * 64):
        assert not same_embedder(known, other)
    assert same_embedder(known, known)
