"""A stored folder of schema version 1, made by the release that wrote it, becomes one of this version."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import Document, Embedder, IndexFolderError, Retriever
from stm_retriever.index import upgrade as upgrading
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import read_index_manifest
from stm_retriever.index.upgrade import upgrade
from stm_training.commands import upgrade as command
from tests.tiny_retriever import make_tiny_retriever

STORED = Path(__file__).parents[1] / "contract" / "index_v1"

# What that release was told: six documents, an odd one, then, after its snapshot, two more and a deletion.
EXPECTED = [
    *(
        Document(
            id=f"d{number}",
            text=f"{word} {number}",
            metadata={
                "year": 2000 + number,
                "tags": [word, "all"],
                "even": number % 2 == 0,
                "deep": {"n": number / 4},
            },
        )
        for number, word in ((2, "cherry"), (3, "sea"), (4, "river"), (5, "mountain"))
    ),
    Document(
        id="odd",
        text="line\r\nline \x00 x",
        metadata={"surrogate": "\ud800", "big": 2**70, "none": None, "empty": []},
        parent_id="book",
        start=3,
        end=10,
    ),
    Document(id="d1", text="heart pain", metadata={"year": 1999}),
    Document(id="late", text="doctor night"),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(STORED, tmp_path / "index")
    return tmp_path / "index"


def _state(index: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in index.iterdir() if path.name != "writer.lock"}


def test_an_older_folder_is_a_typed_error_that_names_the_command(old: Path) -> None:
    with pytest.raises(IndexFolderError, match=r"schema version 1.*stm-train upgrade"):
        IndexFolder(old)


def test_an_upgraded_folder_holds_everything_and_can_do_everything(old: Path) -> None:
    embedder = Embedder.load(make_tiny_retriever(old.parent / "model"))
    before = json.loads((old / "manifest.json").read_text("utf-8"))
    assert upgrade(old)
    assert not upgrade(old)
    manifest = read_index_manifest(old)
    assert (manifest.index_id, manifest.embedder.fingerprint) == (before["index_id"], embedder.fingerprint)
    assert sorted(path.name for path in old.glob("documents*")) == [manifest.store]
    with Retriever.open(old) as retriever:
        assert list(retriever.documents()) == EXPECTED
        for document in EXPECTED:
            vector = embedder.encode_document([document.text])[0]
            hit = retriever.search_vector(vector, k=1)[0]
            assert hit.id == document.id
            assert hit.score == pytest.approx(1, abs=1e-5)
        folder = retriever._index
        assert [d.id for d in folder.documents(where={"tags": "all", "deep.n": {"$gte": 1}})] == ["d4", "d5"]
        assert [d.id for d, _ in folder.lexical(["a pain in the heart"], 5)[0]] == ["d1"]
        assert folder.unchanged(EXPECTED) == [True] * len(EXPECTED)
        retriever.add([Document(id="d2", text="changed"), Document(id="new", text="apple")])
        retriever.delete(["odd"])
    with Retriever.open(old) as retriever:
        assert [d.id for d in retriever.documents()] == ["d3", "d4", "d5", "d1", "late", "d2", "new"]


def test_the_snapshot_of_an_older_folder_is_still_good(old: Path) -> None:
    snapshot = read_index_manifest(old, oldest=1).snapshot
    assert snapshot is not None
    upgrade(old)
    folder = IndexFolder(old)
    assert folder.manifest.snapshot == snapshot
    assert folder._live.position > snapshot.position
    with folder._store.reading() as reader:
        assert reader.snapshot_sha256() == snapshot.sha256
        # The log behind the snapshot was copied: a reader replays it instead of rebuilding.
        assert [len(changes.added) for changes in reader.changes_after(snapshot.position)] == [2]
    folder.close()


@pytest.mark.parametrize("step", ["_copy_log", "write_index_manifest"])
def test_an_upgrade_that_dies_leaves_the_old_folder_and_can_be_repeated(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = _state(old)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(upgrading, step, dies)
    with pytest.raises(KeyboardInterrupt):
        upgrade(old)
    after = _state(old)
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert upgrade(old)
    folder = IndexFolder(old)
    assert list(folder.documents()) == EXPECTED
    folder.close()


def test_a_damaged_older_folder_is_a_typed_error_and_stays_as_it_was(old: Path) -> None:
    path = old / "documents.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    before = _state(old)
    with pytest.raises(IndexFolderError):
        upgrade(old)
    assert read_index_manifest(old, oldest=1).schema_version == 1
    assert {name: _state(old)[name] for name in before} == before


def test_a_folder_that_is_written_is_not_upgraded(old: Path) -> None:
    from stm_retriever.index.lock import WriterLock

    lock = WriterLock(old)
    lock.acquire()
    with pytest.raises(IndexFolderError, match="being written by process"):
        upgrade(old)
    lock.release()


def test_the_command_upgrades_once(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(index=str(old))
    assert command.run(arguments) == 0
    assert "is up to date now" in capsys.readouterr().out
    assert command.run(arguments) == 0
    assert "was up to date already" in capsys.readouterr().out
    folder = IndexFolder(old)
    assert np.allclose(np.linalg.norm(folder.vectors_of(["d2", "late"]), axis=1), 1)
    folder.close()
