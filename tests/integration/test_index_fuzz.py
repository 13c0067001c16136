"""Index folders that somebody has tampered with: only typed errors, and the process lives.

Every folder is opened, searched and written in a child process. Where a file has a checksum beside it, the checksum is
rewritten too, as an attacker would.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever.errors import __dict__ as errors
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef
from tests.integration.index_load import DIMENSION, document_of, vector_of

ROOT = Path(__file__).parents[2]
EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=DIMENSION, variant="fp32")
TYPED = {name for name, value in errors.items() if isinstance(value, type)}
_AT_ONCE = 10  # folders per child: starting one costs a second

Mutation = Callable[[Path, random.Random], None]


def _make(path: Path, kind: str) -> Path:
    folder = IndexFolder.create(path, embedder=EMBEDDER, kind=kind)
    texts = {f"d{number}": f"sea {number} {number % 5}" for number in range(60)}
    folder.put(
        [document_of(name, text) for name, text in texts.items()],
        np.array([vector_of(t) for t in texts.values()]),
    )
    folder.close()
    return path


def _open_all(folders: list[Path]) -> list[str]:
    """Use folders in a child process; return what became of each."""
    said: list[str] = []
    for start in range(0, len(folders), _AT_ONCE):
        part = folders[start : start + _AT_ONCE]
        child = subprocess.run(
            [sys.executable, "-m", "tests.integration.opening_process", *map(str, part)],
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            cwd=ROOT,
            # An empty state folder: no snapshot is known there, so every one is tried out first.
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(part[0].parent / "state")},
        )
        words = child.stdout.split()
        assert child.returncode == 0, f"{part[len(words)]}: {child.returncode}\n{child.stderr[-3000:]}"
        said += words
    return said


def _fuzz(tmp_path: Path, kind: str, mutation: Mutation, count: int, seed: str) -> None:
    dice = random.Random(seed)
    original = _make(tmp_path / "original", kind)
    copies = []
    for number in range(count):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(original, copy)
        mutation(copy, dice)
        copies.append(copy)
    said = _open_all(copies)
    assert set(said) <= TYPED | {"ok"}
    assert len(said) == count


def _bytes(data: bytes, dice: random.Random) -> bytes:
    """Change a few bytes, mostly to numbers that are somebody's limit."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5, 20])):
        size = dice.choice([1, 1, 2, 4, 8])
        place = dice.randrange(max(len(changed) - size, 1))
        value = dice.choice([0, 1, 2**31 - 1, 2**63, 2**64 - 1, dice.randrange(2**64)])
        changed[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(changed[: dice.choice([len(changed)] * 9 + [dice.randrange(len(changed))])])


def _head(data: bytes, dice: random.Random) -> bytes:
    """The same in the first bytes only, where formats keep sizes and types."""
    return _bytes(data[:200], dice) + data[200:]


def _snapshot(folder: Path, dice: random.Random) -> None:
    path = next(iter(folder.glob("*.faiss")))
    path.write_bytes(dice.choice([_bytes, _head])(path.read_bytes(), dice))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    digest = "sha256:" * manifest["snapshot"]["sha256"].startswith("sha256:")
    digest += hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["snapshot"]["sha256"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    connection = sqlite3.connect(folder / "documents.sqlite")
    connection.execute("UPDATE facts SET value = ? WHERE name = 'snapshot'", (digest,))
    connection.commit()
    connection.close()


def _pages(folder: Path, dice: random.Random) -> None:
    path = folder / "documents.sqlite"
    data = path.read_bytes()
    page = dice.randrange(len(data) // 4096) * 4096
    path.write_bytes(
        data[:page] + dice.choice([_bytes, _head])(data[page : page + 4096], dice) + data[page + 4096 :]
    )


def _values(folder: Path, dice: random.Random) -> None:
    """Put values of odd types and sizes into tables, over SQL, so that SQLite finds nothing wrong with the file."""
    connection = sqlite3.connect(folder / "documents.sqlite")
    odd = [
        None,
        0,
        -1,
        2**63 - 1,
        1.5,
        float("inf"),
        "",
        "x" * 5000,
        b"",
        b"\xff" * 16,
        b"\x00" * 64,
        "[" * 5000,
        "[1]",
    ]
    tables = {
        "documents": ["label", "id", "text", "metadata", "parent_id", "start_offset", "end_offset", "hash"],
        "vectors": ["label", "vector", "checksum"],
        "facts": ["value"],
        "keys": ["key", "name"],
        "attributes": ["key", "type", "value", "label"],
        "sqlite_sequence": ["seq"],
        "words_data": ["block"],
        "words_docsize": ["sz"],
        "words_config": ["v"],
    }
    for _ in range(dice.choice([1, 1, 3])):
        table = dice.choice(list(tables))
        column = dice.choice(tables[table])
        number = dice.randrange(60)
        try:
            if table == "attributes":
                connection.execute(
                    f"UPDATE attributes SET {column} = ? WHERE label = ?", (dice.choice(odd), number)
                )
            else:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? WHERE rowid IN "
                    f"(SELECT rowid FROM {table} LIMIT 1 OFFSET ?)",
                    (dice.choice(odd), number if table in ("documents", "vectors") else number % 3),
                )
        except sqlite3.Error:
            continue
    connection.commit()
    connection.close()


def _manifest(folder: Path, dice: random.Random) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    odd: list[Any] = [
        None, 0, -1, 2**70, 1.5, "", "flat", "hnsw", "../../../etc/passwd", "/etc/passwd", "writer.lock", [], {},
        {"nprobe": -1}, {"efSearch": 2**40}, "x" * 10_000, True, "factory:IVF1,Flat", "factory:(((", "documents.sqlite",
    ]  # fmt: skip
    part = dice.choice([content, content, content["embedder"], content["snapshot"]])
    part[dice.choice(list(part))] = dice.choice(odd)
    if dice.random() < 0.2:
        path.write_bytes(_bytes(json.dumps(content).encode(), dice))
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


MUTATIONS = {"manifest": _manifest, "pages": _pages, "values": _values, "snapshot": _snapshot}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_folder_tampered_with_gives_a_typed_error_and_no_crash(tmp_path: Path, name: str) -> None:
    _fuzz(tmp_path, "flat", MUTATIONS[name], 20 if name != "snapshot" else 6, name)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-pq"])
@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.timeout(1200)
def test_many_folders_tampered_with(tmp_path: Path, name: str, kind: str) -> None:
    _fuzz(tmp_path, kind, MUTATIONS[name], 200 if name != "snapshot" else 60, f"{name} {kind}")


TRAPS = {
    "a trigger": "CREATE TRIGGER trap AFTER INSERT ON documents BEGIN DELETE FROM vectors; END",
    "a view": "CREATE VIEW trap AS SELECT * FROM documents",
    "another table": "CREATE TABLE trap (value)",
    "a column with a default": "ALTER TABLE documents ADD COLUMN trap DEFAULT 7",
    "no index": "DROP INDEX documents_by_parent",
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_file_with_other_tables_than_ours_is_refused(tmp_path: Path, name: str) -> None:
    index = _make(tmp_path / "index", "flat")
    connection = sqlite3.connect(index / "documents.sqlite")
    connection.execute(TRAPS[name])
    connection.commit()
    connection.close()
    assert _open_all([index]) == ["IndexFolderError"]


def test_no_path_in_a_manifest_leaves_the_folder(tmp_path: Path) -> None:
    index = _make(tmp_path / "index", "flat")
    outside = tmp_path / "outside.sqlite"
    shutil.copy(index / "documents.sqlite", outside)
    content = json.loads((index / "manifest.json").read_text("utf-8"))
    for path in ("../outside.sqlite", str(outside), "a/../../outside.sqlite", "..\\outside.sqlite"):
        (index / "manifest.json").write_text(json.dumps({**content, "store": path}), encoding="utf-8")
        assert _open_all([index]) == ["IndexFolderError"]
