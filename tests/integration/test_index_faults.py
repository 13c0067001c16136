"""Full disks, damaged files, two writers, readers during compaction: typed errors, and nothing lost or wrong."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import Document, StmError
from stm_retriever.errors import IndexFolderError
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef
from tests.integration.index_load import DIMENSION, document_of, vector_of

ROOT = Path(__file__).parents[2]
EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=DIMENSION, variant="fp32")
TEXTS = {f"d{number}": f"sea {number} {number % 5}" for number in range(120)}

# A process that may write no file beyond a size, as on a full disk: it says what was acknowledged, then what failed.
FILLER = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from stm_retriever import Document, StmError
from stm_retriever.index.folder import IndexFolder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = IndexFolder(Path(sys.argv[1]))
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
vectors = np.eye(16, dtype=np.float32)
said = []
for number in range(2000):
    documents = [Document(id=f"n{number}-{part}", text="filling " * 300) for part in range(16)]
    try:
        folder.put(documents, vectors)
    except StmError as error:
        said.append(type(error).__name__)
        break
    print(number, flush=True)
try:
    folder.snapshot()
except StmError as error:
    said.append(type(error).__name__)
found = len(folder.search(vectors[:1], 5)[0])
folder.close()
print(json.dumps([said, found]), flush=True)
"""


def _fill(path: Path) -> None:
    folder = IndexFolder.create(path, embedder=EMBEDDER)
    documents = [document_of(name, text) for name, text in TEXTS.items()]
    folder.put(documents, np.array([vector_of(text) for text in TEXTS.values()]))
    folder.close()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    _fill(tmp_path / "index")
    return tmp_path / "index"


def _check_whole(folder: IndexFolder, texts: dict[str, str]) -> None:
    assert {document.id: document.text for document in folder.documents()} == texts
    for name, text in list(texts.items())[::17]:
        assert folder.search(vector_of(text)[None], 1)[0][0][0].id == name


# A full disk -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [400_000, 1_500_000, 6_000_000])
def test_a_disk_that_fills_up_loses_nothing_acknowledged(index: Path, limit: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FILLER, str(index), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    *acknowledged, last = child.stdout.splitlines()
    assert last.startswith('[["IndexFolderError"')
    folder = IndexFolder(index)
    ids = {document.id for document in folder.documents()}
    expected = {f"n{number}-{part}" for number in range(len(acknowledged)) for part in range(16)}
    assert ids == expected | TEXTS.keys()
    folder.put([Document(id="after", text="after")], vector_of("after")[None])
    assert folder.search(vector_of("after")[None], 1)[0][0][0].id == "after"
    folder.compact()
    folder.close()


def test_a_database_that_may_not_grow_changes_nothing(index: Path) -> None:
    folder = IndexFolder(index)
    connection = folder._store.writer().connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(IndexFolderError, match=r"full.*Free disk space"):
        folder.put(
            [Document(id=f"n{number}", text="x" * 3000) for number in range(50)],
            np.ones((50, DIMENSION), np.float32),
        )
    _check_whole(folder, TEXTS)
    folder.close()


# Damage ----------------------------------------------------------------------------------------------------


def _flip(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def _zero(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    size = min(dice.choice([16, 512, 4096]), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


@pytest.mark.parametrize("name", ["manifest.json", "documents.sqlite", "vectors-1.faiss"])
@pytest.mark.parametrize("damage", [_flip, _cut, _zero])
def test_a_damaged_file_gives_right_answers_or_a_typed_error(
    index: Path, tmp_path: Path, name: str, damage: object
) -> None:
    dice = random.Random(name)
    for number in range(12):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(index, copy)
        path = copy / name
        path.write_bytes(damage(path.read_bytes(), dice))  # type: ignore[operator]
        try:
            folder = IndexFolder(copy)
        except StmError:
            continue
        try:
            for document in folder.documents():
                assert document == document_of(document.id, TEXTS[document.id])
            for identifier, text in list(TEXTS.items())[::9]:
                (best, score), *_ = folder.search(vector_of(text)[None], 3)[0]
                assert (best.id, best.text) == (identifier, text)
                assert score == pytest.approx(1, abs=1e-5)
        except StmError:
            pass
        finally:
            folder.close()


@pytest.fixture
def killed(index: Path) -> tuple[Path, dict[str, str]]:
    """A folder as a killed writer leaves it: its last commits are only in the write-ahead log."""
    folder = IndexFolder(index)
    later = {f"e{number}": f"later {number}" for number in range(20)}
    for name, text in later.items():
        folder.put([document_of(name, text)], vector_of(text)[None])
    copy = index.with_name("killed")
    shutil.copytree(index, copy)
    folder.close()
    assert (copy / "documents.sqlite-wal").stat().st_size > 0
    return copy, later


@pytest.mark.parametrize("damage", [_flip, _cut, _zero])
def test_a_damaged_log_gives_a_state_that_was_or_a_typed_error(
    killed: tuple[Path, dict[str, str]], damage: object
) -> None:
    path, later = killed
    names = list(later)
    dice = random.Random(7)
    for number in range(10):
        copy = path.with_name(f"copy{number}")
        shutil.copytree(path, copy)
        (copy / "documents.sqlite-shm").unlink(missing_ok=True)
        log = copy / "documents.sqlite-wal"
        if number:  # the first time as it is
            log.write_bytes(damage(log.read_bytes(), dice))  # type: ignore[operator]
        try:
            folder = IndexFolder(copy)
            found = {document.id for document in folder.documents()}
        except StmError:
            assert number
            continue
        # SQLite stops at the first frame whose checksum is wrong: whole commits, a beginning of all.
        kept = [name for name in names if name in found]
        assert kept == names[: len(kept)]
        assert number or len(kept) == len(names)
        _check_whole(folder, {**TEXTS, **{name: later[name] for name in kept}})
        folder.close()


# Several at once -------------------------------------------------------------------------------------------


@pytest.fixture
def searching(index: Path) -> Iterator[tuple[list[BaseException], list[int]]]:
    """Three threads and a folder of their own, that search until the test is over."""
    failures: list[BaseException] = []
    done: list[int] = []
    stop = threading.Event()
    reader = IndexFolder(index, read_only=True)

    def search(number: int) -> None:
        names = list(TEXTS)[number::3]
        turn = 0
        while not stop.is_set():
            name = names[turn % len(names)]
            turn += 1
            try:
                hits = reader.search(vector_of(TEXTS[name])[None], 3)[0]
                assert hits[0][0].text == TEXTS[name]
                group = len(TEXTS[name]) % 7
                hits = reader.search(vector_of(TEXTS[name])[None], 3, where={"group": group})[0]
                assert hits[0][0].text == TEXTS[name]
                assert reader.lexical([TEXTS[name]], 1)[0]
            except BaseException as error:
                failures.append(error)
                return
            done.append(1)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    yield failures, done
    stop.set()
    for thread in threads:
        thread.join()
    reader.close()
    assert not failures
    assert done


def test_readers_go_on_during_writes_compactions_and_changes_of_kind(
    index: Path, searching: tuple[list[BaseException], list[int]]
) -> None:
    failures, done = searching
    writer = IndexFolder(index)
    for number in range(12):
        extra = [Document(id=f"x{number}-{part}", text=f"extra {number} {part}") for part in range(30)]
        writer.put(extra, np.array([vector_of(document.text) for document in extra]))
        writer.put(
            [document_of(name, TEXTS[name]) for name in TEXTS], np.array([*map(vector_of, TEXTS.values())])
        )
        writer.delete([document.id for document in extra[:20]])
        if number % 3 == 0:
            writer.compact()
        if number % 4 == 1:
            writer.change_kind("hnsw" if writer.manifest.kind == "flat" else "flat")
        assert not failures
    assert writer.count() == len(TEXTS) + 12 * 10
    writer.close()
    assert done


def test_of_two_writers_one_is_refused_and_nothing_is_mixed(index: Path) -> None:
    folders = [IndexFolder(index) for _ in range(2)]
    written: list[str] = []
    refused: list[str] = []

    def write(number: int) -> None:
        for step in range(20):
            name = f"w{number}-{step}"
            try:
                folders[number].put([document_of(name, name)], vector_of(name)[None])
                written.append(name)
            except IndexFolderError as error:
                assert "is being written by" in str(error)
                refused.append(name)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({name.split("-")[0] for name in written}) == 1
    assert len(written) == len(refused) == 20
    _check_whole(folders[0], {**TEXTS, **{name: name for name in written}})
    for folder in folders:
        folder.close()
