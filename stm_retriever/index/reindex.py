"""Another model's vectors for the same documents, built beside the old ones and swapped in by the manifest.

The new documents' file carries the labels of the old one. So what is left to do is always the difference of
the two: after an interruption, and after writes that came meanwhile. Readers keep the old file until they
open the folder again; it is deleted by the next compaction.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stm_retriever.errors import IndexFolderError
from stm_retriever.index.live import LiveIndex
from stm_retriever.index.lock import WriterLock
from stm_retriever.index.manifest import (
    EmbedderRef,
    IndexManifest,
    read_index_manifest,
    write_index_manifest,
)
from stm_retriever.index.ranking import unit_rows
from stm_retriever.index.reading import Reader
from stm_retriever.index.rows import hash_of, row_of
from stm_retriever.index.snapshot import save_snapshot
from stm_retriever.index.store import DocumentStore
from stm_retriever.index.vectors import Vectors, check_kind

REINDEX_LOCK = "reindex.lock"

Encode = Callable[[list[str]], Vectors]
"""Encodes documents' texts: float32 (n, dimension)."""
Report = Callable[[int, int], None]
"""Told after each block: documents encoded so far, and those that were left at that time."""


@dataclass(frozen=True)
class Reindexed:
    """What a re-encoding did.

    Attributes:
        encoded: Documents encoded by this call.
        kept: Documents that an interrupted call before had encoded already.
        manifest: The folder's manifest now.
    """

    encoded: int
    kept: int
    manifest: IndexManifest


def reindex(
    path: Path,
    *,
    embedder: EmbedderRef,
    encode: Encode,
    kind: str | None = None,
    block: int = 256,
    wait: float = 60.0,
    report: Report | None = None,
) -> Reindexed:
    """Encode every document of an index with another model, then let the folder be that model's.

    Searching and writing with the old model go on meanwhile, in this and other processes; only the last
    moment needs the writer's place. When this is killed, the next call goes on where it was.

    Args:
        path: The index folder.
        embedder: The new model, for the manifest.
        encode: The new model's ``encode_document``.
        kind: Another kind of vector index; None keeps the kind.
        block: Documents per transaction.
        wait: Seconds to wait at the end for another writer to close the index.
        report: Told about progress.

    Raises:
        ConfigError: If there is no such kind.
        IndexFolderError: If another re-encoding runs, a writer does not close the index in time, or the disk
            is full. The folder is then still the old model's.
    """
    path = Path(path).absolute()
    manifest = read_index_manifest(path)
    chosen = kind or manifest.kind
    check_kind(chosen)
    if manifest.embedder.fingerprint == embedder.fingerprint and manifest.dimension == embedder.dimension:
        return Reindexed(0, 0, manifest)
    with _locked(WriterLock(path, REINDEX_LOCK), 0.0):
        old = DocumentStore(path / manifest.store, dimension=manifest.dimension)
        with closing(old), closing(_target(path, manifest, embedder)) as new:
            job = _Job(old, new, encode, embedder.dimension, block, report)
            kept = new.count()
            while job.follow():
                pass
            live = _opened(path, new, manifest, embedder, chosen)
            with _locked(WriterLock(path), wait):
                _check_still(path, manifest)
                job.follow()
                swapped = _swap(path, old, new, live)
            return Reindexed(job.encoded, kept, swapped)


class _Job:
    def __init__(
        self,
        old: DocumentStore,
        new: DocumentStore,
        encode: Encode,
        dimension: int,
        block: int,
        report: Report | None,
    ) -> None:
        self._old, self._new, self._encode = old, new, encode
        self._dimension, self._block, self._report = dimension, block, report
        self.encoded = 0

    def follow(self) -> bool:
        """Make the new file hold what the old one holds now. Returns whether anything was left to do."""
        with self._old.reading() as reader:
            wanted = _content(reader)
        with self._new.reading() as reader:
            there = _content(reader)
        gone = sorted(there.items() - wanted.items())
        with self._new.writing() as writer:
            writer.delete_labels([label for label, _ in gone])
        missing = sorted(label for label, _ in wanted.items() - there.items())
        for start in range(0, len(missing), self._block):
            self._encode_block(missing[start : start + self._block])
            if self._report is not None:
                self._report(self.encoded, len(missing) - start - self._block)
        return bool(gone or missing)

    def _encode_block(self, labels: Sequence[int]) -> None:
        with self._old.reading() as reader:
            documents = sorted(reader.by_labels(labels).items())  # those that are still there
        if not documents:
            return
        vectors = unit_rows(
            self._encode([document.text for _, document in documents]),
            rows=len(documents),
            dimension=self._dimension,
        )
        rows = [(label, row_of(document)) for label, document in documents]
        with self._new.writing() as writer:
            writer.insert(
                [
                    (label, row, hash_of(row), vector)
                    for (label, row), vector in zip(rows, vectors, strict=True)
                ]
            )
        self.encoded += len(documents)


def _content(reader: Reader) -> dict[int, bytes]:
    return dict(reader.connection.execute("SELECT label, hash FROM documents").fetchall())


def _target(path: Path, manifest: IndexManifest, embedder: EmbedderRef) -> DocumentStore:
    """The new documents' file: a fresh one, or the one that an interrupted call has begun."""
    identity = json.dumps([manifest.index_id, embedder.fingerprint, embedder.dimension, embedder.variant])
    name = f"documents-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.sqlite"
    target = path / name
    if target.exists():
        try:
            return DocumentStore(target, dimension=embedder.dimension)
        except IndexFolderError:  # killed while it was made
            for file in path.glob(f"{name}*"):
                file.unlink()
    DocumentStore.create(target, index_id=manifest.index_id)
    return DocumentStore(target, dimension=embedder.dimension)


def _opened(
    path: Path, new: DocumentStore, manifest: IndexManifest, embedder: EmbedderRef, kind: str
) -> tuple[LiveIndex, IndexManifest]:
    """The new vector index, built before the writer's place is taken: for some kinds that takes minutes."""
    wanted = manifest.model_copy(
        update={
            "embedder": embedder,
            "dimension": embedder.dimension,
            "kind": kind,
            "built_kind": None,
            "store": new.path.name,
            "snapshot": None,
            "search_parameters": {},
        }
    )
    live = LiveIndex(path, wanted)
    with new.reading() as reader:
        live.open(reader)
    return live, wanted


def _swap(
    path: Path, old: DocumentStore, new: DocumentStore, opened: tuple[LiveIndex, IndexManifest]
) -> IndexManifest:
    live, wanted = opened
    with old.reading() as reader:
        newest = reader.sequence("documents")
    with new.writing() as writer:  # a label of the old file never means another document in the new one
        writer.set_sequence("documents", max(newest, writer.sequence("documents")))
    with new.reading() as reader, live.gate.alone():
        live.replay(reader)
    generation = read_index_manifest(path).generation + 1
    ref = save_snapshot(path, live.alive(), generation=generation, position=live.position)
    with new.writing() as writer:
        writer.trim(ref.position, ref.sha256)
    new.tidy(vacuum=False)
    kind = None if live.built_kind == wanted.kind else live.built_kind
    written = wanted.model_copy(update={"generation": generation, "snapshot": ref, "built_kind": kind})
    write_index_manifest(path, written)
    return written


def _check_still(path: Path, manifest: IndexManifest) -> None:
    if read_index_manifest(path).store != manifest.store:
        raise IndexFolderError(
            f"The index {str(path)!r} was re-encoded by another process meanwhile. Look at its manifest, and "
            "start again if it is still wanted."
        )


@contextmanager
def _locked(lock: WriterLock, wait: float) -> Iterator[None]:
    deadline = time.monotonic() + wait
    while True:
        try:
            lock.acquire()
            break
        except IndexFolderError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()
