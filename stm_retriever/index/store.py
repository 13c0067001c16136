"""Documents, vectors and the log of changes in one SQLite file, the source of truth of an index.

A change is committed and on disk before it is acknowledged (write-ahead log, ``synchronous=FULL``). The
vector index in memory is only ever a replay of what is in here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.errors import IndexFolderError
from stm_retriever.index.rows import Row, document_of, row_of
from stm_retriever.index.vectors import Labels, Vectors
from stm_retriever.types import Document

STORE_NAME = "documents.sqlite"

_CHUNK = 500  # SQL variables of one statement
_BLOCK = 20_000  # vectors in memory at once while replaying
_SELECT = "SELECT label, id, text, metadata, parent_id, start_offset, end_offset FROM documents "
_INSERT = (
    "INSERT INTO documents (label, id, text, metadata, parent_id, start_offset, end_offset) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
# Labels are never given twice (AUTOINCREMENT): a replaced document gets a new one, so that the log of changes
# may be replayed from any point on, and the label's order is the order of insertion.
_TABLES = """
CREATE TABLE documents (
    label INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    parent_id TEXT,
    start_offset INTEGER,
    end_offset INTEGER
);
CREATE TABLE vectors (label INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE changes (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    label INTEGER NOT NULL,
    added INTEGER NOT NULL
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Changes:
    """A stretch of the log: labels to remove, then vectors to add, and where the log then stands."""

    position: int
    removed: Labels
    added: Labels
    vectors: Vectors


class DocumentStore:
    """One connection to ``documents.sqlite``. Not thread-safe; callers lock."""

    def __init__(self, path: Path, *, dimension: int) -> None:
        self._path = path
        self._dimension = dimension
        if not path.is_file():
            raise IndexFolderError(
                f"{str(path)!r} is missing, and with it all documents. Restore it from a backup, or index "
                "the documents again."
            )
        with self._telling():
            self._connection = _connect(path)

    @staticmethod
    def create(path: Path, *, index_id: str) -> None:
        """Make an empty store at a path where no file is."""
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript("BEGIN;" + _TABLES + "COMMIT;")
            connection.execute("INSERT INTO facts VALUES ('index_id', ?)", (index_id,))
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All reads inside see one state of the store."""
        with self._telling(), self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All writes inside come into effect together and durably at the end, or not at all."""
        with self._telling(), self._transaction("BEGIN IMMEDIATE"):
            yield

    # Reading -----------------------------------------------------------------------------------------------

    def index_id(self) -> str:
        """Return the id that the folder's manifest must carry too."""
        return self._fact("index_id", "")

    def snapshot_sha256(self) -> str:
        """Return the hash of the last snapshot that was made from this store; empty for none."""
        return self._fact("snapshot", "")

    def count(self) -> int:
        """Count the documents."""
        return int(self._connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def last_position(self) -> int:
        """Return the position of the newest change, also when the log has been trimmed since; 0 for none."""
        return self._sequence("changes")

    def trimmed_through(self) -> int:
        """Return the last position that is no longer in the log."""
        return int(self._fact("trimmed", "0"))

    def changes_after(self, position: int) -> Iterator[Changes]:
        """Yield the log behind ``position`` in stretches, oldest first."""
        statement = (
            "SELECT position, changes.label, added, vector FROM changes "
            "LEFT JOIN vectors ON added AND vectors.label = changes.label "
            "WHERE position > ? ORDER BY position LIMIT ?"
        )
        while rows := self._connection.execute(statement, (position, _BLOCK)).fetchall():
            position = rows[-1][0]
            # An added label without a vector was removed again later on.
            added = [
                (label, vector) for _, label, is_added, vector in rows if is_added and vector is not None
            ]
            removed = [label for _, label, is_added, _ in rows if not is_added]
            yield Changes(position, np.array(removed, np.int64), *self._arrays(added))

    def all_vectors(self) -> Iterator[tuple[Labels, Vectors]]:
        """Yield every label and vector in blocks, in order of insertion."""
        last = 0
        statement = "SELECT label, vector FROM vectors WHERE label > ? ORDER BY label LIMIT ?"
        while rows := self._connection.execute(statement, (last, _BLOCK)).fetchall():
            last = rows[-1][0]
            yield self._arrays(rows)

    def by_labels(self, labels: Sequence[int]) -> dict[int, Document]:
        """Return the documents under these labels."""
        rows = self._select_in(_SELECT + "WHERE label IN", labels)
        return {row[0]: document_of(row[1:]) for row in rows}

    def by_ids(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents with these ids."""
        rows = self._select_in(_SELECT + "WHERE id IN", ids)
        return {row[1]: document_of(row[1:]) for row in rows}

    def page(self, after: int, size: int) -> list[tuple[int, Document]]:
        """Return the next documents behind a label, in order of insertion."""
        statement = _SELECT + "WHERE label > ? ORDER BY label LIMIT ?"
        rows = self._connection.execute(statement, (after, size)).fetchall()
        return [(row[0], document_of(row[1:])) for row in rows]

    # Writing, inside writing() -----------------------------------------------------------------------------

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """Insert documents, replacing those with the same ids.

        Args:
            documents: n checked documents with distinct ids.
            vectors: float32 (n, dimension), of length 1.
        """
        self.delete([document.id for document in documents])
        first = self._sequence("documents") + 1
        labels = range(first, first + len(documents))
        rows: Iterator[tuple[int, *Row]] = (
            (label, *row_of(document)) for label, document in zip(labels, documents, strict=True)
        )
        blobs = ((label, _blob(vector)) for label, vector in zip(labels, vectors, strict=True))
        execute = self._connection.executemany
        execute(_INSERT, rows)
        execute("INSERT INTO vectors (label, vector) VALUES (?, ?)", blobs)
        execute("INSERT INTO changes (label, added) VALUES (?, 1)", ((label,) for label in labels))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; unknown ids are ignored. Returns how many were there."""
        found = self._select_in("SELECT label FROM documents WHERE id IN", list(dict.fromkeys(ids)))
        execute = self._connection.executemany
        execute("DELETE FROM documents WHERE label = ?", found)
        execute("DELETE FROM vectors WHERE label = ?", found)
        execute("INSERT INTO changes (label, added) VALUES (?, 0)", found)
        return len(found)

    def trim(self, through: int, snapshot: str) -> None:
        """Forget the changes up to a position, which the snapshot with that hash now holds."""
        self._connection.execute("DELETE FROM changes WHERE position <= ?", (through,))
        facts = (("trimmed", str(through)), ("snapshot", snapshot))
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)

    # -------------------------------------------------------------------------------------------------------

    def _fact(self, name: str, default: str) -> str:
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else default

    def _sequence(self, table: str) -> int:
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(row[0]) if row else 0

    def _select_in(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(values), _CHUNK):
            chunk = list(values[start : start + _CHUNK])
            marks = ",".join("?" * len(chunk))
            rows.extend(self._connection.execute(f"{statement} ({marks})", chunk).fetchall())
        return rows

    def _arrays(self, rows: Sequence[tuple[int, bytes]]) -> tuple[Labels, Vectors]:
        size = 4 * self._dimension
        for label, blob in rows:
            if len(blob) != size:
                raise IndexFolderError(
                    f"{str(self._path)!r}: the vector with label {label} has {len(blob)} bytes instead of "
                    f"{size}; the file is damaged. Restore it from a backup, or index the documents again."
                )
        labels = np.array([label for label, _ in rows], np.int64)
        joined = b"".join(blob for _, blob in rows)
        vectors = np.frombuffer(joined, "<f4").reshape(len(rows), self._dimension).astype(np.float32)
        return labels, vectors

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IndexFolderError(
                f"{str(self._path)!r}: SQLite says {error!s:.200}. What was acknowledged before is kept, "
                f"this call changed nothing. {_remedy(str(error))}"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = _open(path, "")
        connection.execute("SELECT count(*) FROM facts").fetchone()
    except sqlite3.OperationalError:
        # A folder that may only be read, as in a container image, cannot hold SQLite's shared-memory file.
        # Reading the main file alone is right only if no write-ahead log is left beside it.
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size > 0:
            raise
        connection = _open(path, "?immutable=1")
        connection.execute("SELECT count(*) FROM facts").fetchone()
    return connection


def _open(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + options,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30.0,
    )
    for pragma in ("synchronous=FULL", "fullfsync=ON", "checkpoint_fullfsync=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _remedy(message: str) -> str:
    if "full" in message:
        return "Free disk space and call again."
    if "readonly" in message or "unable to open" in message:
        return "Make the folder and its files writable for this user."
    if "locked" in message:
        return "Another program holds the file; close it and call again."
    return "If it stays, the file is damaged: restore it from a backup, or index the documents again."


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()
