"""The vector index in memory: loaded from a snapshot, brought up to the store's state, searched by many."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stm_retriever.errors import ConfigError, IndexFolderError
from stm_retriever.index.manifest import IndexManifest, read_index_manifest
from stm_retriever.index.reading import Reader
from stm_retriever.index.snapshot import load_snapshot
from stm_retriever.index.vectors import Labels, VectorIndex, new_index, resolve_kind

logger = logging.getLogger(__name__)


class Gate:
    """Many may be inside to search; who changes the index waits until they are gone and keeps others out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._inside = 0

    def enter(self) -> None:
        """Come in to search; :meth:`leave` afterwards."""
        with self._lock:
            self._inside += 1

    def leave(self) -> None:
        """Go out again."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one inside."""
        with self._condition:
            while self._inside:
                self._condition.wait()
            yield


class LiveIndex:
    """A vector index and the position in the log of changes that it has reached.

    ``index`` and ``position`` are read inside ``gate``, and changed by who is alone in it.
    """

    def __init__(
        self, path: Path, manifest: IndexManifest, *, device: str = "cpu", mmap: bool = True
    ) -> None:
        self.gate = Gate()
        self.index: VectorIndex | None = None
        self.position = 0
        self.built_kind = manifest.kind
        self._path = path
        self._manifest = manifest
        self._device = device
        self._mmap = mmap

    def open(self, reader: Reader) -> None:
        """Load the snapshot if it fits the store, replay the log, and compare the labels.

        Raises:
            IndexFolderError: If the store itself does not hold one vector for each document.
        """
        with self.gate.alone():
            self._load(reader)
            self.replay(reader)
            if self._holds(reader.labels()):
                return
            logger.warning("%s: snapshot and documents disagree; rebuilding.", self._path)
            self.rebuild(reader)
            if not self._holds(reader.labels()):
                raise IndexFolderError(
                    f"{str(self._path)!r}: the store holds {reader.count()} documents but "
                    f"{len(self.alive())} vectors, or not those of these documents; the file is damaged. "
                    "Restore it from a backup, or index the documents again."
                )

    def alive(self) -> VectorIndex:
        """The index, where it is known to be whole."""
        if self.index is None:
            raise RuntimeError("the vector index was not loaded; call replay first")
        return self.index

    def replay(self, reader: Reader) -> None:
        """Bring the index to the store's state: inside one read transaction, alone in the gate."""
        last = reader.last_position()
        if self.index is not None and self.position == last:
            return
        if self.index is None or self.position > last:
            self.rebuild(reader)
        elif self.position < reader.trimmed_through():
            self._catch_up_by_snapshot(reader, last)
        else:
            self._follow(reader, last)

    def rebuild(self, reader: Reader, manifest: IndexManifest | None = None) -> None:
        """Make the index anew from the stored vectors; inside one read transaction, alone in the gate."""
        if manifest is not None:
            self._manifest = manifest
        last = reader.last_position()
        self.index = None  # frees its memory, and what an interrupted rebuild leaves is never searched
        index, self.built_kind = built(reader, self._manifest)
        self.index, self.position = self._placed(index), last

    def take(self, index: VectorIndex, manifest: IndexManifest, built_kind: str, position: int) -> None:
        """Replace the index by another one; alone in the gate."""
        self._manifest = manifest
        self.index, self.position, self.built_kind = self._placed(index), position, built_kind

    def _follow(self, reader: Reader, last: int) -> None:
        index, self.index = self.index, None  # what an interrupted replay leaves behind is never searched
        if index is None:
            return
        for changes in reader.changes_after(self.position):
            index.remove(changes.removed)
            index.add(changes.added, changes.vectors)
        self.index, self.position = index, last

    def _catch_up_by_snapshot(self, reader: Reader, last: int) -> None:
        """Another process has saved a snapshot and trimmed what this one has not replayed."""
        manifest = read_index_manifest(self._path)
        self.index = None
        if manifest.store == self._manifest.store:
            self._manifest = manifest
            self._load(reader)
        if self.index is not None and reader.trimmed_through() <= self.position <= last:
            self._follow(reader, last)
            if self._holds(reader.labels()):
                return
        self.rebuild(reader)

    def _holds(self, labels: Labels) -> bool:
        """Whether the index holds just these sorted labels; a file can say anything about its rows."""
        return np.array_equal(self.alive().live_labels(), labels)

    def _load(self, reader: Reader) -> None:
        snapshot = self._manifest.snapshot
        # A store put back from a backup is older than the snapshot beside it, and does not know it.
        if snapshot is None or snapshot.sha256 != reader.snapshot_sha256():
            return
        self.built_kind = self._manifest.built_kind or self._manifest.kind
        wanted = self._manifest.model_copy(update={"kind": self.built_kind})
        index = load_snapshot(self._path, wanted, mmap=self._mmap)
        self.index = None if index is None else self._placed(index)
        self.position = snapshot.position

    def _placed(self, index: VectorIndex) -> VectorIndex:
        if self._device == "cpu":
            return index
        from stm_retriever.index.kinds.gpu import to_gpu

        return to_gpu(index, cards(self._device))


def cards(device: str) -> list[int] | None:
    """Read ``"cuda"`` (all cards) or ``"cuda:0,1"``.

    Raises:
        ConfigError: If it is neither.
    """
    name, colon, numbers = device.partition(":")
    if name == "cuda" and not colon:
        return None
    parts = numbers.split(",")
    if name != "cuda" or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(
            f"device={device!r} is no place to search at. Take 'cpu', 'cuda' (all cards) or for instance "
            "'cuda:0,1'."
        )
    return [int(part) for part in parts]


def built(reader: Reader, manifest: IndexManifest) -> tuple[VectorIndex, str]:
    """Make a vector index of all stored vectors, of the manifest's kind; inside one read transaction.

    Returns:
        The index and its kind, which for ``"auto"`` follows from the number of documents.
    """
    count = reader.count()
    kind, why = resolve_kind(manifest.kind, count=count, dimension=manifest.dimension)
    if manifest.kind != kind:
        logger.info("%s documents: kind %r (%s).", count, kind, why)
    parameters = manifest.search_parameters if kind == (manifest.built_kind or manifest.kind) else {}
    index = new_index(kind, manifest.dimension, expected=count, sample=reader.sample, parameters=parameters)
    for labels, vectors in reader.all_vectors():
        index.add(labels, np.ascontiguousarray(vectors))
    return index, kind
