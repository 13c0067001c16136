"""What is read from ``documents.sqlite``, over one borrowed connection."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stm_retriever.errors import IndexFolderError
from stm_retriever.index.rows import document_of
from stm_retriever.index.vectors import Labels, Vectors
from stm_retriever.types import Document

CHUNK = 500  # SQL variables of one statement
_BLOCK = 20_000  # vectors in memory at once while replaying
_SELECT = "SELECT label, id, text, metadata, parent_id, start_offset, end_offset, hash FROM documents "


@dataclass(frozen=True)
class Changes:
    """A stretch of the log: labels to remove, then vectors to add, and where the log then stands."""

    position: int
    removed: Labels
    added: Labels
    vectors: Vectors


class Reader:
    """Queries over one connection; each sees the newest commit, or inside :meth:`consistent` one state."""

    def __init__(self, connection: sqlite3.Connection, *, dimension: int) -> None:
        self.connection = connection
        self._dimension = dimension
        self._version = -1
        self._position = -1

    @contextmanager
    def consistent(self) -> Iterator[None]:
        """All reads inside see one state of the store."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            if self.connection.in_transaction:
                self.connection.execute("COMMIT")

    # State -------------------------------------------------------------------------------------------------

    def index_id(self) -> str:
        """Return the id that the folder's manifest must carry too."""
        return self.fact("index_id", "")

    def snapshot_sha256(self) -> str:
        """Return the hash of the last snapshot that was made from this store; empty for none."""
        return self.fact("snapshot", "")

    def count(self) -> int:
        """Count the documents."""
        return int(self.connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def last_position(self) -> int:
        """Return the position of the newest change, also when the log has been trimmed since; 0 for none."""
        return self.sequence("changes")

    def position(self) -> int:
        """As :meth:`last_position`, remembered until another connection has committed something."""
        version = self.connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            # In this order: a commit in between is seen as one more change next time, never as none.
            self._position = self.last_position()
            self._version = version
        return self._position

    def trimmed_through(self) -> int:
        """Return the last position that is no longer in the log."""
        return int(self.fact("trimmed", "0"))

    def fact(self, name: str, default: str) -> str:
        """Return one of the store's notes about itself."""
        row = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else default

    def sequence(self, table: str) -> int:
        """Return the highest number that a table's AUTOINCREMENT has given."""
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(row[0]) if row else 0

    # Vectors -----------------------------------------------------------------------------------------------

    def changes_after(self, position: int) -> Iterator[Changes]:
        """Yield the log behind ``position`` in stretches, oldest first."""
        statement = (
            "SELECT position, changes.label, added, vector, checksum FROM changes "
            "LEFT JOIN vectors ON added AND vectors.label = changes.label "
            "WHERE position > ? ORDER BY position LIMIT ?"
        )
        while rows := self.connection.execute(statement, (position, _BLOCK)).fetchall():
            position = rows[-1][0]
            # An added label without a vector was removed again later on.
            added = [
                (label, vector, checksum)
                for _, label, is_added, vector, checksum in rows
                if is_added and vector is not None
            ]
            removed = [label for _, label, is_added, _, _ in rows if not is_added]
            yield Changes(position, np.array(removed, np.int64), *self._arrays(added))

    def all_vectors(self) -> Iterator[tuple[Labels, Vectors]]:
        """Yield every label and vector in blocks, in order of insertion."""
        last = 0
        statement = "SELECT label, vector, checksum FROM vectors WHERE label > ? ORDER BY label LIMIT ?"
        while rows := self.connection.execute(statement, (last, _BLOCK)).fetchall():
            last = rows[-1][0]
            yield self._arrays(rows)

    def vectors_under(self, labels: list[int]) -> Vectors | None:
        """Return the vectors under labels, float32 (n, dimension), or None if one is gone by now."""
        rows = self.select_in("SELECT label, vector, checksum FROM vectors WHERE label IN", labels)
        found, vectors = self._arrays(rows)
        if found.tolist() == labels:  # SQLite looks them up in this order
            return vectors
        place = {int(label): row for row, label in enumerate(found)}
        try:
            return vectors[[place[label] for label in labels]]
        except KeyError:
            return None

    def sample(self, size: int) -> Vectors:
        """Return up to ``size`` vectors, spread evenly over the documents: the same each time."""
        labels = self.labels()
        chosen = labels[np.unique(np.linspace(0, len(labels) - 1, min(size, len(labels))).astype(int))]
        vectors = self.vectors_under([int(label) for label in chosen])
        if vectors is None:
            raise IndexFolderError(
                "A document in the index has no vector; the file is damaged. Restore it from a backup, or "
                "index the documents again."
            )
        return vectors

    # Documents ---------------------------------------------------------------------------------------------

    def labels(self) -> Labels:
        """Return the labels of all documents, sorted."""
        rows = self.connection.execute("SELECT group_concat(label) FROM documents").fetchone()
        return parse_labels(rows[0])

    def by_labels(self, labels: Sequence[int]) -> dict[int, Document]:
        """Return the documents under these labels."""
        if len(labels) <= CHUNK:
            rows = self.connection.execute(_by_label(len(labels)), labels).fetchall()
        else:
            rows = self.select_in(f"{_SELECT} WHERE label IN", labels)
        return {row[0]: document_of(row[1:7], row[7]) for row in rows}

    def by_ids(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents with these ids."""
        rows = self.select_in(f"{_SELECT} WHERE id IN", ids)
        return {row[1]: document_of(row[1:7], row[7]) for row in rows}

    def labels_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the labels of those ids that are there."""
        return dict(self.select_in("SELECT id, label FROM documents WHERE id IN", ids))

    def hashes_of(self, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Return label and content hash of those ids that are there."""
        rows = self.select_in("SELECT id, label, hash FROM documents WHERE id IN", ids)
        return {name: (label, digest) for name, label, digest in rows}

    def page(self, after: int, size: int) -> list[tuple[int, Document]]:
        """Return the next documents behind a label, in order of insertion."""
        statement = f"{_SELECT} WHERE label > ? ORDER BY label LIMIT ?"
        rows = self.connection.execute(statement, (after, size)).fetchall()
        return [(row[0], document_of(row[1:7], row[7])) for row in rows]

    def select_in(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Run a statement that ends in ``IN`` for any number of values."""
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            marks = ",".join("?" * len(chunk))
            rows.extend(self.connection.execute(f"{statement} ({marks})", chunk).fetchall())
        return rows

    def _arrays(self, rows: Sequence[tuple[int, bytes, int]]) -> tuple[Labels, Vectors]:
        size = 4 * self._dimension
        for label, blob, checksum in rows:
            if not isinstance(blob, bytes) or len(blob) != size or zlib.crc32(blob) != checksum:
                raise IndexFolderError(
                    f"The vector with label {label} in the index is not what was written; the file is "
                    "damaged. Restore the folder from a backup, or index the documents again."
                )
        labels = np.array([row[0] for row in rows], np.int64)
        joined = bytearray().join(row[1] for row in rows)
        vectors = np.frombuffer(joined, "<f4").reshape(len(rows), self._dimension)
        vectors = vectors.astype(np.float32, copy=False)
        if not np.isfinite(vectors).all():
            raise IndexFolderError(
                f"One of the vectors with labels {labels[0]} to {labels[-1]} in the index is not finite; the "
                "file is damaged. Restore the folder from a backup, or index the documents again."
            )
        return labels, vectors


def parse_labels(joined: str | None) -> Labels:
    """Turn SQL's ``group_concat(label)`` into sorted, distinct labels; twice as fast as row by row."""
    if joined is None:
        return np.empty(0, np.int64)
    labels = np.fromstring(str(joined), np.int64, sep=",")
    if (labels[1:] > labels[:-1]).all():  # as a rule
        return labels
    labels.sort()  # np.unique goes by hashes, which takes ten times as long
    distinct: Labels = labels[np.concatenate([[True], labels[1:] != labels[:-1]])]
    return distinct


@cache
def _by_label(count: int) -> str:
    return f"{_SELECT} WHERE label IN ({','.join('?' * count)})"
