"""Which embedder an index is opened with: cut vectors, devices, what contradicts each other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from langchain_stm import STMEmbeddings, STMVectorStore
from llama_index.embeddings.stm import STMEmbedding
from stm_retriever import ArtifactMismatchError, ConfigError, Document, Embedder, Retriever
from stm_retriever.folder import read_manifest, write_manifest


@pytest.fixture
def matryoshka(tmp_path: Path, tiny_onnx_retriever: Path) -> Path:
    """A model whose vectors may be cut from 32 to 8 numbers."""
    folder = Path(shutil.copytree(tiny_onnx_retriever, tmp_path / "matryoshka"))
    write_manifest(folder, read_manifest(folder).model_copy(update={"dimensions_allowed": [8, 32]}))
    return folder


def test_an_index_of_cut_vectors_is_opened_with_cut_vectors(tmp_path: Path, matryoshka: Path) -> None:
    short = Embedder.load(matryoshka, dimension=8, threads=1)
    with Retriever.create(tmp_path / "index", embedder=short) as retriever:
        retriever.add([Document(id="a", text="a red apple"), Document(id="b", text="a green pear")])
        expected = retriever.search("red apple")
        assert retriever.vectors_of(["a"]).shape == (1, 8)
    with Retriever.open(tmp_path / "index", threads=1) as again:
        assert again.embedder.dimension == 8
        assert again.search("red apple") == expected
    with pytest.raises(ArtifactMismatchError, match=r"8 dimensions.*32 dimensions"):
        Retriever.open(tmp_path / "index", embedder=Embedder.load(matryoshka, threads=1))


def test_the_frameworks_embeddings_can_be_cut_too(tmp_path: Path, matryoshka: Path) -> None:
    cut = STMEmbeddings(model=matryoshka, dimension=8)
    vector = cut.embed_query("red apple")
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    assert STMEmbedding(matryoshka, dimension=8).get_query_embedding("red apple") == vector
    assert STMEmbeddings(embedder=cut.embedder).dimension == 8
    assert STMEmbedding(embedder=cut.embedder).dimension == 8
    with STMVectorStore(tmp_path / "index", cut) as store:
        store.add_texts(["a red apple"])
    with STMVectorStore(tmp_path / "index") as again:
        assert again.embeddings.embed_query("red apple") == vector


def test_embeddings_of_rounded_vectors_are_refused(tiny_onnx_retriever: Path) -> None:
    rounded = Embedder.load(tiny_onnx_retriever, precision="int8", threads=1)
    for make in (STMEmbeddings, STMEmbedding):
        with pytest.raises(ConfigError, match=r"int8.*float32"):
            make(embedder=rounded)


def test_what_a_model_is_loaded_with_and_a_loaded_one_contradict_each_other(
    tmp_path: Path, tiny_embedder: Embedder
) -> None:
    Retriever.create(tmp_path / "index", embedder=tiny_embedder).close()
    with pytest.raises(ConfigError, match=r"threads=2.*which one counts"):
        Retriever.open(tmp_path / "index", embedder=tiny_embedder, threads=2)
    with Retriever.open(tmp_path / "index", threads=2, read_only=True) as retriever:
        assert retriever.embedder.fingerprint == tiny_embedder.fingerprint


def test_maintenance_reaches_the_index(tmp_path: Path, tiny_embedder: Embedder) -> None:
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        retriever.add(Document(id=str(n), text=f"red apple {n}") for n in range(40))
        retriever.snapshot()
        assert retriever.manifest.snapshot is not None
        expected = [hit.id for hit in retriever.search("red apple 7", 3)]
        retriever.change_kind("hnsw")
        assert retriever.manifest.kind == "hnsw"
        tuned = retriever.tune(recall=0.9, k=3, queries=["red apple 7", "apple 12", "red 3"])
        assert tuned.recall >= 0.9
        retriever.delete(str(n) for n in range(20, 40))
        retriever.compact()
        assert len(retriever) == 20
        assert retriever.search("red apple 7", 1)[0].id == expected[0]
