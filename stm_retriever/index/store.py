"""Documents, vectors and the log of changes in one SQLite file, the source of truth of an index.

A change is committed and on disk before it is acknowledged (write-ahead log, ``synchronous=FULL``). The
vector index in memory is only ever a replay of what is in here.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.filters import flatten
from stm_retriever.index.connections import connect, first_connection, telling
from stm_retriever.index.manifest import STORE_NAME
from stm_retriever.index.reading import CHUNK, Reader
from stm_retriever.index.rows import Row, hash_of
from stm_retriever.index.schema import create_tables
from stm_retriever.index.selecting import name_of
from stm_retriever.index.vectors import Vectors

__all__ = ["STORE_NAME", "DocumentStore", "Writer"]

_MOST_IDLE = 32  # read connections kept open
_SAME = 1e-5  # a text encoded in another batch differs by less; such a vector is not written again
_INSERT = (
    "INSERT INTO documents (label, id, text, metadata, parent_id, start_offset, end_offset, hash) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class DocumentStore:
    """The connections to one ``documents.sqlite``: one that writes, and as many that read as read at once.

    A borrowed reader belongs to its borrower, so reading needs no lock here; callers lock writing.
    """

    def __init__(self, path: Path, *, dimension: int) -> None:
        """Open a store.

        Raises:
            IndexFolderError: If it is missing, no such file, or damaged so that SQLite cannot read it.
        """
        self.path = path
        self._dimension = dimension
        self._closed = False
        self._writer: Writer | None = None
        with telling(path):
            connection, self._options = first_connection(path)
        self._idle = deque([Reader(connection, dimension=dimension)])

    @staticmethod
    def create(path: Path, *, index_id: str) -> None:
        """Make an empty store at a path where no file is."""
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            create_tables(connection, index_id=index_id)
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connections; those that another thread still reads with, as soon as it is done."""
        self._closed = True
        while self._idle:
            self._idle.pop().connection.close()
        if self._writer is not None:
            self._writer.connection.close()
            self._writer = None

    def take(self) -> Reader:
        """Borrow a reader; give it back."""
        try:
            return self._idle.pop()
        except IndexError:
            return Reader(connect(self.path, self._options), dimension=self._dimension)

    def give_back(self, reader: Reader) -> None:
        """Return a borrowed reader."""
        if reader.connection.in_transaction:
            reader.connection.execute("ROLLBACK")
        if self._closed or len(self._idle) >= _MOST_IDLE:
            reader.connection.close()
        else:
            self._idle.append(reader)

    @contextmanager
    def borrowed(self) -> Iterator[Reader]:
        """A reader, each of whose queries sees the newest commit."""
        with telling(self.path):
            reader = self.take()
            try:
                yield reader
            finally:
                self.give_back(reader)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """A reader, all of whose queries see one state of the store."""
        with self.borrowed() as reader, reader.consistent():
            yield reader

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """All writes inside come into effect together and durably at the end, or not at all."""
        with telling(self.path), self.writer().transaction():
            yield self.writer()

    def writer(self) -> Writer:
        """The one connection that writes."""
        if self._writer is None:
            self._writer = Writer(connect(self.path, self._options), dimension=self._dimension)
        return self._writer

    def tidy(self, *, vacuum: bool) -> None:
        """Merge the word index, give free pages back if asked, and empty the write-ahead log."""
        with telling(self.path):
            execute = self.writer().connection.execute
            execute("INSERT INTO words (words) VALUES ('optimize')")
            if vacuum:
                execute("VACUUM")
            execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def free_share(self) -> float:
        """Return the share of the file's pages that hold nothing."""
        with self.borrowed() as reader:
            free = reader.connection.execute("PRAGMA freelist_count").fetchone()[0]
            pages = reader.connection.execute("PRAGMA page_count").fetchone()[0]
        return float(free / max(pages, 1))

    def index_id(self) -> str:
        """Return the id that the folder's manifest must carry too."""
        with self.borrowed() as reader:
            return reader.index_id()

    def count(self) -> int:
        """Count the documents."""
        with self.borrowed() as reader:
            return reader.count()

    def last_position(self) -> int:
        """Return the position of the newest change, also when the log has been trimmed since; 0 for none."""
        with self.borrowed() as reader:
            return reader.last_position()


class Writer(Reader):
    """Changes, inside one transaction; its reads see what it has changed."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def put(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Insert documents, replacing those with the same ids, unless they are there already just so.

        Args:
            rows: n checked documents with distinct ids, as rows.
            vectors: float32 (n, dimension), of length 1.
        """
        hashes = [hash_of(row) for row in rows]
        old = self.hashes_of([row[0] for row in rows])
        same = self._same(rows, hashes, vectors, old)
        self.delete_labels([old[row[0]][0] for row in rows if row[0] in old and row[0] not in same])
        fresh = [place for place, row in enumerate(rows) if row[0] not in same]
        first = self.sequence("documents") + 1
        labels = {place: first + number for number, place in enumerate(fresh)}
        self.insert([(labels[place], rows[place], hashes[place], vectors[place]) for place in fresh])

    def insert(self, new: Sequence[tuple[int, Row, bytes, Vectors]]) -> None:
        """Insert rows, each with a label that was never given, its hash and its vector."""
        execute = self.connection.executemany
        execute(_INSERT, ((label, *row, digest) for label, row, digest, _ in new))
        execute(
            "INSERT INTO vectors (label, vector, checksum) VALUES (?, ?, ?)",
            ((label, blob, zlib.crc32(blob)) for label, blob in ((item[0], _blob(item[3])) for item in new)),
        )
        execute("INSERT INTO changes (label, added) VALUES (?, 1)", ((item[0],) for item in new))
        execute(
            "INSERT INTO words (rowid, text) VALUES (?, ?)", ((label, row[1]) for label, row, _, _ in new)
        )
        execute(
            "INSERT OR IGNORE INTO attributes (key, type, value, label) VALUES (?, ?, ?, ?)",
            self._attributes([(label, row[2]) for label, row, _, _ in new]),
        )

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; unknown ids are ignored. Returns how many were there."""
        labels = list(self.labels_of(list(dict.fromkeys(ids))).values())
        self.delete_labels(labels)
        return len(labels)

    def delete_labels(self, labels: Sequence[int]) -> None:
        """Delete the documents under labels that are there."""
        for start in range(0, len(labels), CHUNK):
            self._delete_chunk(labels[start : start + CHUNK])

    def trim(self, through: int, snapshot: str) -> None:
        """Forget the changes up to a position, which the snapshot with that hash now holds."""
        self.connection.execute("DELETE FROM changes WHERE position <= ?", (through,))
        self.set_fact("trimmed", str(through))
        self.set_fact("snapshot", snapshot)

    def set_fact(self, name: str, value: str) -> None:
        """Note something about the store."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def set_sequence(self, table: str, value: int) -> None:
        """Let a table's AUTOINCREMENT go on behind a number."""
        self.connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, value))

    def _same(
        self,
        rows: Sequence[Row],
        hashes: Sequence[bytes],
        vectors: Vectors,
        old: Mapping[str, tuple[int, bytes]],
    ) -> set[str]:
        """Ids of rows that are stored already with this content and, up to rounding, this vector."""
        places = [
            place
            for place, row in enumerate(rows)
            if row[0] in old and bytes(old[row[0]][1]) == hashes[place]
        ]
        stored = self.vectors_under([old[rows[place][0]][0] for place in places])
        if stored is None:
            return set()
        near = np.abs(stored - vectors[places]).max(axis=1, initial=0.0) <= _SAME
        return {rows[place][0] for place, is_near in zip(places, near, strict=True) if is_near}

    def _delete_chunk(self, labels: Sequence[int]) -> None:
        # FTS5 and the attributes must be told what they hold of a document; both follow from it.
        rows = self.select_in("SELECT label, text, metadata FROM documents WHERE label IN", labels)
        execute = self.connection.executemany
        execute(
            "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)",
            ((label, text) for label, text, _ in rows),
        )
        execute(
            "DELETE FROM attributes WHERE key = ? AND type = ? AND value = ? AND label = ?",
            self._attributes([(label, metadata) for label, _, metadata in rows]),
        )
        found = [(label,) for label, _, _ in rows]
        execute("DELETE FROM documents WHERE label = ?", found)
        execute("DELETE FROM vectors WHERE label = ?", found)
        execute("INSERT INTO changes (label, added) VALUES (?, 0)", found)

    def _attributes(self, rows: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, Any, int]]:
        """Yield (key, type, value, label) of every value in the metadata of (label, metadata as JSON)."""
        numbers: dict[str, int] = {}
        for label, metadata in rows:
            if metadata == "{}":
                continue
            for name, (kind, value) in flatten(json.loads(metadata)):
                if name not in numbers:
                    numbers[name] = self._key(name)
                yield numbers[name], kind, value, label

    def _key(self, name: str) -> int:
        given = (name_of(name),)
        self.connection.execute("INSERT OR IGNORE INTO keys (name) VALUES (?)", given)
        return int(self.connection.execute("SELECT key FROM keys WHERE name = ?", given).fetchone()[0])


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()
