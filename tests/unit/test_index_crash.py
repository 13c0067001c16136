"""What a crash or a damaged snapshot leaves: every acknowledged document, and a folder that opens."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np
import pytest

from stm_retriever import Document, Embedder, Retriever
from stm_retriever.folder import sha256_file
from stm_retriever.index import folder as index_folder
from stm_retriever.index import live
from stm_retriever.index.snapshot import load_snapshot

WRITER = """
import sys
from stm_retriever import Document, Retriever

retriever = Retriever.open(sys.argv[1])
start = int(sys.argv[2])
for number in range(start, start + 100_000):
    documents = [Document(id=f"{number}-{part}", text=f"{number} sea {part}") for part in range(3)]
    retriever.add([*documents, Document(id="latest", text=f"number {number}")])
    retriever.delete([f"{number - 1}-0"])
    if number % 7 == 6:
        retriever._index.snapshot()
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def _kill_while_writing(index: Path, start: int, seconds: float) -> int:
    """Run the writer, kill it some time after its first acknowledgement; return the last acknowledged "
    "number."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(index), str(start)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first == f"{start}\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0]
    finally:
        child.kill()
        child.wait()
    acknowledged = [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]
    return int(acknowledged[-1])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_no_acknowledged_document_is_lost_and_none_is_half_there_after_sigkill(
    tmp_path: Path, tiny_embedder: Embedder
) -> None:
    path = tmp_path / "index"
    Retriever.create(path, embedder=tiny_embedder).close()
    start = 0
    for seconds in (0.0, 0.003, 0.011, 0.037, 0.12, 0.31):
        last = _kill_while_writing(path, start, seconds)
        with Retriever.open(path, read_only=True) as retriever:
            ids = {document.id for document in retriever.documents()}
            for number in range(last + 1):
                there = [f"{number}-{part}" in ids for part in range(3)]
                assert there[1:] == [True, True]
                assert not there[0] or number == last  # the next number deletes it
            # At most one more call was committed, all of it or nothing.
            beyond = [name for name in ids if name != "latest" and int(name.split("-")[0]) > last]
            assert len(beyond) in (0, 3)
            newest = last + bool(beyond)
            latest = retriever.get(["latest"])[0]
            assert latest is not None
            assert latest.text == f"number {newest}"
            assert retriever.count() == len(ids) == len(retriever.search("sea", k=len(ids) + 5))
            vector = tiny_embedder.encode_document([f"{last} sea 1"])[0]
            assert retriever.search_vector(vector, k=1)[0].score == pytest.approx(1, abs=1e-6)
        start = last + 1  # as an application would: on from what was acknowledged


@pytest.fixture
def saved(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        retriever.add([Document(id=f"d{number}", text=f"sea {number}") for number in range(50)])
    return tmp_path / "index"


def _snapshot(index: Path) -> Path:
    return next(iter(index.glob("vectors-*.faiss")))


def _torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [_torn, _flipped, lambda data: b"", lambda data: data + b"\0", lambda data: bytes(len(data))],
    ids=["torn", "bit flipped", "empty", "longer", "zeros"],
)
def test_a_damaged_snapshot_is_rebuilt_from_the_documents(
    saved: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = _snapshot(saved)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING), Retriever.open(saved) as retriever:
        assert "is not usable (sha256" in caplog.text
        assert len(retriever.search("sea", k=100)) == 50
        retriever.add([Document(id="new", text="heart")])
    with Retriever.open(saved) as retriever:  # and the next close has saved a good one
        assert load_snapshot(saved, retriever.manifest) is not None
        assert retriever.search("heart", k=1)[0].id == "new"


def _relabel(index: Path, labels: list[int]) -> None:
    """Give the rows of a snapshot other labels, and write its new checksum wherever one is compared."""
    path = _snapshot(index)
    wrapped = faiss.read_index(str(path))
    faiss.copy_array_to_vector(np.array(labels, np.int64), wrapped.id_map)
    faiss.write_index(wrapped, str(path))
    manifest = json.loads((index / "manifest.json").read_text("utf-8"))
    manifest["snapshot"]["sha256"] = sha256_file(path)
    (index / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with closing(sqlite3.connect(index / "documents.sqlite")) as connection, connection:
        connection.execute(
            "UPDATE facts SET value = ? WHERE name = 'snapshot'", (manifest["snapshot"]["sha256"],)
        )


@pytest.mark.parametrize("labels", [range(2, 52), [*range(1, 50), 999]], ids=["shifted", "one of its own"])
def test_a_snapshot_of_as_many_other_labels_is_rebuilt_although_its_checksum_fits(
    saved: Path, labels: Sequence[int], caplog: pytest.LogCaptureFixture
) -> None:
    with Retriever.open(saved, read_only=True) as retriever:
        expected = retriever.search("sea 7", k=50)
    _relabel(saved, list(labels))
    with caplog.at_level(logging.WARNING), Retriever.open(saved, read_only=True) as retriever:
        assert "snapshot and documents disagree" in caplog.text
        assert retriever.search("sea 7", k=50) == expected


def test_a_missing_snapshot_is_rebuilt_from_the_documents(saved: Path) -> None:
    _snapshot(saved).unlink()
    with Retriever.open(saved) as retriever:
        assert len(retriever.search("sea", k=100)) == 50


def test_a_snapshot_newer_than_the_documents_is_not_believed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (saved / "documents.sqlite").read_bytes()
    with Retriever.open(saved) as retriever:
        retriever.add([Document(id="d0", text="heart")])
    (saved / "documents.sqlite").write_bytes(old)  # a backup of this one file, put back
    for number in range(3):  # by the third the log has passed the position that the snapshot names
        with Retriever.open(saved) as retriever:
            retriever.add([Document(id="d9", text=f"doctor {number}")])
            assert retriever.count() == len(retriever.search("sea", k=100)) == 50
            assert retriever.search("doctor", k=1)[0].text == f"doctor {number}"
            monkeypatch.setattr(retriever._index, "snapshot", lambda: None)  # as if it died here


def test_an_unchanged_index_loads_its_snapshot_and_replays_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt(*_: object) -> None:
        raise AssertionError("rebuilt, although the snapshot is good")

    monkeypatch.setattr(live, "new_index", rebuilt)
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    with Retriever.open(saved) as retriever:
        assert len(retriever.search("sea", k=100)) == 50
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


def test_a_snapshot_and_the_log_behind_it_give_what_a_rebuild_gives(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_retriever.index import reading

    monkeypatch.setattr(reading, "_BLOCK", 7)
    with Retriever.open(saved) as retriever:
        retriever.delete([f"d{number}" for number in range(0, 50, 3)])
        retriever.add([Document(id=f"d{number}", text=f"heart {number}") for number in range(20, 40)])
        retriever.delete(["d21", "d49"])
        monkeypatch.setattr(retriever._index, "snapshot", lambda: None)  # as if it died here
    with Retriever.open(saved) as replayed:
        found = replayed.search("heart 7", k=100)
    _snapshot(saved).unlink()
    with Retriever.open(saved) as rebuilt:
        assert rebuilt.search("heart 7", k=100) == found
        assert len(found) == rebuilt.count()


def test_only_the_newest_snapshot_stays_and_the_log_is_trimmed(saved: Path) -> None:
    (saved / "vectors-77.faiss.partial").touch()
    for generation in (2, 3):
        with Retriever.open(saved) as retriever:
            retriever.add([Document(id="d0", text=f"number {generation}")])
        manifest = json.loads((saved / "manifest.json").read_text("utf-8"))
        assert manifest["generation"] == generation
        assert [path.name for path in saved.glob("vectors-*")] == [f"vectors-{generation}.faiss"]
    with Retriever.open(saved) as retriever:
        connection = retriever._index._store.writer().connection
        assert connection.execute("SELECT count(*) FROM changes").fetchone()[0] == 0
        assert retriever.count() == 50


def test_a_snapshot_that_cannot_be_written_loses_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from stm_retriever.index import snapshot

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "flush_file", full_disk)
    with caplog.at_level(logging.WARNING), Retriever.open(saved) as retriever:
        retriever.add([Document(id="new", text="heart")])
    assert "closed without a snapshot" in caplog.text
    assert not list(saved.glob("*.partial"))
    monkeypatch.undo()
    with Retriever.open(saved) as retriever:
        assert retriever.search("heart", k=1)[0].id == "new"
        assert retriever.count() == 51


def test_a_creation_that_dies_leaves_no_half_index(
    tmp_path: Path, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_folder, "write_index_manifest", dies)
    with pytest.raises(KeyboardInterrupt):
        Retriever.create(tmp_path / "index", embedder=tiny_embedder)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    Retriever.create(tmp_path / "index", embedder=tiny_embedder).close()
