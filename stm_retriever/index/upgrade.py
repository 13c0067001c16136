"""Folders of schema version 1 become version 2; nothing is encoded again, a crash leaves the old folder."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.errors import IndexFolderError
from stm_retriever.index.compaction import remove_other_stores
from stm_retriever.index.connections import distrust, telling
from stm_retriever.index.lock import WriterLock
from stm_retriever.index.manifest import (
    SCHEMA_VERSION,
    STORE_NAME,
    IndexManifest,
    read_index_manifest,
    write_index_manifest,
)
from stm_retriever.index.rows import hash_of
from stm_retriever.index.store import DocumentStore, Writer

_NEW_STORE = "documents-v2.sqlite"
_BLOCK = 1000
_DOCUMENTS = (
    "SELECT d.label, id, text, metadata, parent_id, start_offset, end_offset, vector "
    "FROM documents AS d JOIN vectors AS v ON v.label = d.label WHERE d.label > ? ORDER BY d.label LIMIT ?"
)


def upgrade(path: Path) -> bool:
    """Bring an index folder to the present schema.

    The documents are copied into a new file, with hashes, filter tables and words; the manifest then names it
    and the old file is deleted. Meanwhile the folder needs twice its space.

    Args:
        path: The folder; nobody may be writing to it.

    Returns:
        Whether there was anything to do.

    Raises:
        IndexFolderError: If it is no index folder, damaged, being written, or the disk is full; it is then as
            it was.
    """
    path = Path(path).absolute()
    if read_index_manifest(path, oldest=1).schema_version == SCHEMA_VERSION:
        return False
    lock = WriterLock(path)
    lock.acquire()
    try:
        manifest = read_index_manifest(path, oldest=1)
        _remove(path, _NEW_STORE)  # of an upgrade that was interrupted
        with telling(path / STORE_NAME):
            _copy(path, manifest)
        changes = {"schema_version": SCHEMA_VERSION, "store": _NEW_STORE}
        write_index_manifest(path, manifest.model_copy(update=changes))
        remove_other_stores(path, _NEW_STORE)
    finally:
        lock.release()
    return True


def _copy(path: Path, manifest: IndexManifest) -> None:
    with closing(_open_old(path / STORE_NAME)) as old:
        facts = dict(old.execute("SELECT name, value FROM facts"))
        if facts.get("index_id") != manifest.index_id:
            raise IndexFolderError(
                f"{str(path)!r}: {STORE_NAME} belongs to the index {facts.get('index_id')!r}, the manifest "
                f"to {manifest.index_id!r}; files of two indexes were mixed. Restore the folder from a "
                "backup."
            )
        DocumentStore.create(path / _NEW_STORE, index_id=manifest.index_id)
        store = DocumentStore(path / _NEW_STORE, dimension=manifest.dimension)
        with closing(store):
            for block in _blocks(old):
                with store.writing() as writer:
                    writer.insert([_converted(row, manifest.dimension) for row in block])
            with store.writing() as writer:
                _copy_log(old, writer, facts)
            copied, there = store.count(), old.execute("SELECT count(*) FROM documents").fetchone()[0]
            if copied != there:
                raise IndexFolderError(
                    f"{str(path)!r}: {there} documents but only {copied} with a vector; {STORE_NAME} is "
                    "damaged. Restore it from a backup, or index the documents again."
                )
            store.tidy(vacuum=False)


def _open_old(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise IndexFolderError(
            f"{str(path)!r} is missing, and with it all documents. Restore it from a backup."
        )
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=30.0)
    distrust(connection)
    return connection


def _blocks(old: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    last = 0
    while rows := old.execute(_DOCUMENTS, (last, _BLOCK)).fetchall():
        last = rows[-1][0]
        yield rows


def _converted(row: tuple[Any, ...], dimension: int) -> tuple[int, Any, bytes, Any]:
    label, blob, fields = row[0], row[7], row[1:7]
    if not isinstance(blob, bytes) or len(blob) != 4 * dimension:
        raise IndexFolderError(
            f"The vector with label {label} has another length than {dimension} numbers; {STORE_NAME} is "
            "damaged. Restore it from a backup, or index the documents again."
        )
    return label, fields, hash_of(fields), np.frombuffer(blob, "<f4").astype(np.float32)


def _copy_log(old: sqlite3.Connection, writer: Writer, facts: dict[str, str]) -> None:
    """The same labels and positions as before: the snapshot stays valid."""
    execute = writer.connection.execute
    execute("DELETE FROM changes")
    writer.connection.executemany(
        "INSERT INTO changes (position, label, added) VALUES (?, ?, ?)",
        old.execute("SELECT position, label, added FROM changes").fetchall(),
    )
    for name, sequence in old.execute("SELECT name, seq FROM sqlite_sequence").fetchall():
        writer.set_sequence(str(name), int(sequence))
    for name in ("trimmed", "snapshot"):
        if name in facts:
            writer.set_fact(name, str(facts[name]))


def _remove(path: Path, name: str) -> None:
    for file in path.glob(f"{name}*"):
        file.unlink()
