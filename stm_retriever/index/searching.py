"""Searching an index folder: by vector and by words, with filters, while others write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from stm_retriever.errors import IndexFolderError
from stm_retriever.filters import Filter
from stm_retriever.index.connections import telling
from stm_retriever.index.lexical import lexical_top, match_expression
from stm_retriever.index.live import LiveIndex
from stm_retriever.index.ranking import ChangedMeanwhileError, exact_top
from stm_retriever.index.reading import Reader
from stm_retriever.index.selecting import Selections, key_of, select
from stm_retriever.index.store import DocumentStore
from stm_retriever.index.vectors import Labels, Vectors
from stm_retriever.types import Document

_HURRIED = 3  # searches that a writer may overtake before one keeps it out

Found = list[tuple[Document, float]]
"""One query's documents with their scores, best first."""


class Searcher:
    """Searches that run at the same time in several threads, each on a connection of its own."""

    def __init__(
        self, path: Path, store: DocumentStore, live: LiveIndex, check_open: Callable[[], None]
    ) -> None:
        self._path = path
        self._store = store
        self._live = live
        self._check_open = check_open
        self._lock = threading.Lock()
        self._selections = Selections()

    def dense(self, queries: Vectors, k: int, where: Filter | None) -> list[Found]:
        """Find the nearest documents of each query, float32 (n, dimension), of length 1."""
        self._check_open()
        with telling(self._path):
            reader = self._store.take()
            try:
                for _ in range(_HURRIED):
                    found = self._attempt(reader, queries, k, where)
                    if found is not None:
                        return found
                return self._alone(reader, queries, k, where)
            finally:
                self._store.give_back(reader)

    def lexical(self, queries: Sequence[str], k: int, where: Filter | None) -> list[Found]:
        """Find the documents that share words with each query."""
        self._check_open()
        expressions = [match_expression(query) for query in queries]
        with self._store.reading() as reader:
            allowed = self.selected(reader, where, reader.last_position()) if where else None
            ranked = [lexical_top(reader, expression, k, allowed) for expression in expressions]
            documents = reader.by_labels(list({label for row in ranked for label, _ in row}))
        return _joined(ranked, documents, self._path)

    def _attempt(self, reader: Reader, queries: Vectors, k: int, where: Filter | None) -> list[Found] | None:
        """Search without keeping writers out; None if one deleted what was found.

        That is right although nothing holds the store still: a label means the same document for ever, so
        the answer is that of the moment whose labels the index holds.
        """
        live = self._live
        position = reader.position()
        if live.position != position or live.index is None:
            self._check_open()
            with live.gate.alone(), reader.consistent():
                live.replay(reader)
                position = live.position
        allowed = self._selected_at(reader, where, position) if where else None
        if where and allowed is None:
            return None
        live.gate.enter()
        try:
            if live.index is None or live.position != position:
                return None
            ranked = exact_top(live.index, queries, k, stored=reader.vectors_under, allowed=allowed)
        except ChangedMeanwhileError:
            return None
        finally:
            live.gate.leave()
        labels = {label for row in ranked for label, _ in row}
        documents = reader.by_labels(list(labels))
        if len(documents) < len(labels):
            return None
        return [[(documents[label], score) for label, score in row] for row in ranked]

    def _alone(self, reader: Reader, queries: Vectors, k: int, where: Filter | None) -> list[Found]:
        """Search in one transaction; other searches wait."""
        live = self._live
        with live.gate.alone(), reader.consistent():
            self._check_open()
            live.replay(reader)
            allowed = self.selected(reader, where, live.position) if where else None
            try:
                ranked = exact_top(live.alive(), queries, k, stored=reader.vectors_under, allowed=allowed)
            except ChangedMeanwhileError as error:
                raise without_vector(self._path) from error
            documents = reader.by_labels(list({label for row in ranked for label, _ in row}))
        return _joined(ranked, documents, self._path)

    def _selected_at(self, reader: Reader, where: Filter, position: int) -> Labels | None:
        """The labels that pass, as of a position; None if the store has moved on."""
        with self._lock:
            known = self._selections.get(key_of(where), position)
        if known is not None:
            return known
        with reader.consistent():
            if reader.last_position() != position:
                return None
            return self.selected(reader, where, position)

    def selected(self, reader: Reader, where: Filter, position: int) -> Labels:
        """The labels that pass, inside a transaction at this position."""
        key = key_of(where)
        with self._lock:
            known = self._selections.get(key, position)
        if known is None:
            known = select(reader, where)
            with self._lock:
                self._selections.put(key, position, known)
        return known


def without_vector(path: Path) -> IndexFolderError:
    """The error for a document that is stored without its vector."""
    return IndexFolderError(
        f"{str(path)!r}: a document is stored without its vector; the file is damaged. Restore it from a "
        "backup, or index the documents again."
    )


def _joined(ranked: list[list[tuple[int, float]]], documents: dict[int, Document], path: Path) -> list[Found]:
    try:
        return [[(documents[label], score) for label, score in row] for row in ranked]
    except KeyError as error:
        raise IndexFolderError(
            f"{str(path)!r}: the document with label {error} was found but is not stored; the file is "
            "damaged. Restore it from a backup, or index the documents again."
        ) from error
