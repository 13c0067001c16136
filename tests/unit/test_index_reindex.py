"""Another model for the same documents: built beside, resumable, followed, swapped at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import Document, IndexFolderError
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef, read_index_manifest
from stm_retriever.index.reindex import reindex
from stm_retriever.index.vectors import Vectors

OLD = EmbedderRef(name="old", fingerprint="sha256:old", dimension=4, variant="fp32")
NEW = EmbedderRef(name="new", fingerprint="sha256:new", dimension=6, variant="fp32")


class Model:
    """Gives each text a vector of its own; another seed is another model."""

    def __init__(self, dimension: int, seed: int) -> None:
        self._dimension, self._seed = dimension, seed
        self.encoded: list[str] = []

    def __call__(self, texts: list[str]) -> Vectors:
        self.encoded += texts
        rows = [
            np.random.default_rng([self._seed, *text.encode()]).standard_normal(self._dimension)
            for text in texts
        ]
        return np.array(rows, np.float32)


@pytest.fixture
def old_model() -> Model:
    return Model(4, 0)


@pytest.fixture
def new_model() -> Model:
    return Model(6, 1)


def _documents(numbers: range, text: str = "text") -> list[Document]:
    return [Document(id=f"d{n}", text=f"{text} {n}", metadata={"n": n}) for n in numbers]


def _add(folder: IndexFolder, model: Model, documents: list[Document]) -> None:
    folder.put(documents, model([document.text for document in documents]))


@pytest.fixture
def index(tmp_path: Path, old_model: Model) -> Path:
    folder = IndexFolder.create(tmp_path / "index", embedder=OLD)
    _add(folder, old_model, _documents(range(30)))
    folder.delete(["d3"])
    folder.close()
    return tmp_path / "index"


def _check_found(folder: IndexFolder, model: Model, documents: list[Document]) -> None:
    assert list(folder.documents()) == documents
    for document in documents[:: max(len(documents) // 5, 1)]:
        found = folder.search(model([document.text]), 1)[0][0]
        assert found[0] == document
        assert found[1] == pytest.approx(1, abs=1e-6)


def test_a_reindexed_folder_belongs_to_the_new_model(index: Path, new_model: Model) -> None:
    documents = list(IndexFolder(index).documents())
    result = reindex(index, embedder=NEW, encode=new_model, block=7)
    assert (result.encoded, result.kept) == (29, 0)
    assert sorted(new_model.encoded) == sorted(document.text for document in documents)
    folder = IndexFolder(index)
    assert folder.manifest == result.manifest
    assert (folder.manifest.embedder, folder.manifest.dimension) == (NEW, 6)
    _check_found(folder, new_model, documents)
    assert folder.count(where={"n": {"$gte": 20}}) == 10
    assert [d.id for d, _ in folder.lexical(["12"], 3)[0]] == ["d12"]
    _add(folder, new_model, [Document(id="more", text="more")])
    folder.close()
    assert reindex(index, embedder=NEW, encode=new_model).encoded == 0


def test_readers_keep_the_old_model_until_they_open_the_folder_again(
    index: Path, old_model: Model, new_model: Model
) -> None:
    reader = IndexFolder(index, read_only=True)
    documents = list(reader.documents())
    reindex(index, embedder=NEW, encode=new_model)
    _check_found(reader, old_model, documents)
    writer = IndexFolder(index)
    _add(writer, new_model, [Document(id="later", text="later")])
    writer.close()
    _check_found(reader, old_model, documents)
    reader.close()
    reader = IndexFolder(index, read_only=True)
    assert reader.count() == 30
    reader.close()


def test_a_folder_opened_before_does_not_write_to_the_old_documents(index: Path, new_model: Model) -> None:
    stale = IndexFolder(index)
    reindex(index, embedder=NEW, encode=new_model)
    with pytest.raises(IndexFolderError, match="was re-encoded since it was opened"):
        stale.delete(["d1"])
    with IndexFolder(index)._changing():
        pass  # and the failed attempt does not keep the writer's place
    stale.close()


def test_writes_that_come_meanwhile_are_followed(index: Path, old_model: Model, new_model: Model) -> None:
    writer = IndexFolder(index)
    rounds: list[int] = []

    def report(_done: int, _left: int) -> None:
        rounds.append(1)
        if len(rounds) == 2:
            _add(writer, old_model, [*_documents(range(2, 5), "changed"), *_documents(range(90, 95))])
            writer.delete(["d0", "d20"])
            writer.snapshot()  # and the log is trimmed
        if len(rounds) == 4:
            _add(writer, old_model, _documents(range(95, 97)))
            writer.close()

    reindex(index, embedder=NEW, encode=new_model, block=10, report=report, wait=5.0)
    before = IndexFolder(index)
    expected = {f"d{n}" for n in [1, 2, 3, 4, *range(5, 20), *range(21, 30), *range(90, 97)]}
    documents = list(before.documents())
    assert {document.id for document in documents} == expected
    assert {d.text for d in documents if d.id in ("d2", "d3", "d4")} == {
        "changed 2",
        "changed 3",
        "changed 4",
    }
    _check_found(before, new_model, documents)
    before.close()


def test_an_interrupted_reindexing_goes_on_where_it_was(index: Path, new_model: Model) -> None:
    def killed(done: int, _left: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(index, embedder=NEW, encode=new_model, block=5, report=killed)
    assert read_index_manifest(index).embedder == OLD
    folder = IndexFolder(index)
    assert folder.count() == 29
    folder.close()
    result = reindex(index, embedder=NEW, encode=new_model, block=5)
    assert (result.encoded, result.kept) == (9, 20)
    assert len(new_model.encoded) == 29
    folder = IndexFolder(index)
    _check_found(folder, new_model, list(folder.documents()))
    folder.close()


def test_a_writer_that_does_not_close_stops_only_the_swap(
    index: Path, old_model: Model, new_model: Model
) -> None:
    writer = IndexFolder(index)
    _add(writer, old_model, _documents(range(50, 51)))
    with pytest.raises(IndexFolderError, match="being written by process"):
        reindex(index, embedder=NEW, encode=new_model, wait=0.0)
    assert read_index_manifest(index).embedder == OLD
    writer.close()
    assert reindex(index, embedder=NEW, encode=new_model).kept == 30


def test_back_and_forth_never_mixes_labels(index: Path, old_model: Model, new_model: Model) -> None:
    reindex(index, embedder=NEW, encode=new_model)
    folder = IndexFolder(index)
    _add(folder, new_model, _documents(range(5, 9), "other"))
    folder.delete(["d29"])
    folder.close()
    reindex(index, embedder=OLD, encode=old_model)
    folder = IndexFolder(index)
    documents = list(folder.documents())
    assert len(documents) == 28
    _check_found(folder, old_model, documents)
    assert len(list(index.glob("documents*.sqlite"))) == 3
    folder.compact()
    assert [path.name for path in index.glob("documents*.sqlite")] == [folder.manifest.store]
    _check_found(folder, old_model, documents)
    folder.close()


def test_another_reindexing_at_the_same_time_is_an_error(index: Path, new_model: Model) -> None:
    def second(*_: Any) -> None:
        with pytest.raises(IndexFolderError, match="being written by process"):
            reindex(index, embedder=NEW, encode=new_model)

    reindex(index, embedder=NEW, encode=new_model, report=second)
