"""The index folder: a document store, a vector index that replays it, and the manifest."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stm_retriever._version import __version__
from stm_retriever.atomic_write import flush_folder
from stm_retriever.errors import ConfigError, DataError, IndexFolderError, StmError
from stm_retriever.index.lock import LOCK_NAME, WriterLock
from stm_retriever.index.manifest import (
    EmbedderRef,
    IndexManifest,
    is_index_folder,
    read_index_manifest,
    write_index_manifest,
)
from stm_retriever.index.snapshot import load_snapshot, remove_others, save_snapshot
from stm_retriever.index.store import STORE_NAME, DocumentStore
from stm_retriever.index.vectors import Labels, VectorIndex, Vectors, check_kind, new_index
from stm_retriever.types import Document

logger = logging.getLogger(__name__)

_SPARE = 16
_ROUNDING = 1e-5  # two float32 inner products of one pair of unit vectors differ by less
_PAGE = 500


class IndexFolder:
    """Documents and their vectors on disk. Safe to use from several threads; not across a fork.

    Any number of processes may read while one writes; readers see its commits at their next search.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open an index folder.

        Raises:
            IndexFolderError: If it is missing, damaged beyond repair, or of a newer schema.
        """
        self._path = Path(path).absolute()
        self._read_only = read_only
        self._manifest = read_index_manifest(self._path)
        check_kind(self._manifest.kind)
        self._store = DocumentStore(self._path / STORE_NAME, dimension=self._manifest.dimension)
        self._writer = WriterLock(self._path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._index: VectorIndex | None = None
        self._position = 0
        try:
            self._load()
        except BaseException:
            self._store.close()
            raise

    @classmethod
    def create(cls, path: Path, *, embedder: EmbedderRef, kind: str = "flat") -> IndexFolder:
        """Make an empty index folder where nothing, or an empty folder, is.

        Raises:
            IndexFolderError: If something is there already, or the place cannot be written.
        """
        check_kind(kind)
        path = Path(path).absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "an index" if is_index_folder(path) else "something that is no index"
            raise IndexFolderError(
                f"At {str(path)!r} is {what} already, and it is not overwritten. Open it with "
                "Retriever.open(path) or create(..., exist_ok=True), or take another path."
            )
        manifest = IndexManifest(
            index_id=uuid.uuid4().hex,
            embedder=embedder,
            kind=kind,
            dimension=embedder.dimension,
            created_by=f"stm-retriever {__version__}",
        )
        try:
            _create_files(path, manifest)
        except OSError as error:
            raise IndexFolderError(
                f"No index could be made at {str(path)!r}: {error}. Take a path that this user can write."
            ) from error
        return cls(path)

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def manifest(self) -> IndexManifest:
        """The manifest as of the last open or snapshot."""
        return self._manifest

    # Writing -----------------------------------------------------------------------------------------------

    def put(self, documents: Sequence[Document], vectors: Vectors) -> int:
        """Insert or replace documents, all in one transaction that is on disk when this returns.

        Args:
            documents: n documents that ``rows.check_documents`` has passed.
            vectors: float32 (n, dimension), finite and not zero; stored at length 1.

        Raises:
            ConfigError: If the vectors do not have that shape.
            DataError: If a vector is not finite or zero.
            IndexFolderError: If another writer is at work, or the disk is full; nothing is written then.
        """
        unit = unit_rows(vectors, rows=len(documents), dimension=self._manifest.dimension)
        with self._writing():
            self._store.put(documents, unit)
        return len(documents)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents in one transaction; unknown ids are ignored. Returns how many were there."""
        with self._writing():
            return self._store.delete(ids)

    def snapshot(self) -> None:
        """Save the vector index, so that the next open need not replay the log; a no-op if it is saved.

        Raises:
            IndexFolderError: If another writer is at work, or it cannot be written.
        """
        with self._guard():
            self._check_writable()
            self._writer.acquire()
            with self._store.reading():
                index = self._catch_up()
            # Another process may have written a manifest since this one was opened.
            self._manifest = read_index_manifest(self._path)
            saved = self._manifest.snapshot
            if saved is not None and saved.position == self._position and (self._path / saved.file).is_file():
                return
            generation = self._manifest.generation + 1
            ref = save_snapshot(self._path, index, generation=generation, position=self._position)
            manifest = self._manifest.model_copy(update={"generation": generation, "snapshot": ref})
            write_index_manifest(self._path, manifest)
            self._manifest = manifest
            with self._store.writing():
                self._store.trim(self._position, ref.sha256)
            remove_others(self._path, ref.file)

    # Reading -----------------------------------------------------------------------------------------------

    def search(self, queries: Vectors, k: int) -> list[list[tuple[Document, float]]]:
        """Find the nearest documents of each query.

        Args:
            queries: float32 (n, dimension), finite and not zero.
            k: How many per query, >= 1; fewer come back from a smaller index.

        Returns:
            Per query (document, cosine similarity), best first, equal ones in order of insertion.

        Raises:
            ConfigError: If the queries do not have that shape.
            DataError: If a query is not finite or zero.
        """
        unit = unit_rows(queries, rows=len(queries), dimension=self._manifest.dimension)
        with self._guard(), self._store.reading():
            index = self._catch_up()
            ranked = _exact_top(index, unit, k)
            documents = self._store.by_labels(sorted({label for row in ranked for label, _ in row}))
            return [[(documents[label], score) for label, score in row] for row in ranked]

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the documents with these ids, in that order; None where there is none."""
        with self._guard(), self._store.reading():
            found = self._store.by_ids(list(dict.fromkeys(ids)))
        return [found.get(given) for given in ids]

    def count(self) -> int:
        """Count the documents."""
        with self._guard(), self._store.reading():
            return self._store.count()

    def documents(self) -> Iterator[Document]:
        """Yield every document in order of insertion; writes in between are seen or not, never half."""
        last = 0
        while True:
            with self._guard(), self._store.reading():
                page = self._store.page(last, _PAGE)
            if not page:
                return
            for label, document in page:
                last = label
                yield document

    def close(self) -> None:
        """Save a snapshot if this object wrote, and give everything back. Closing twice is fine."""
        with self._lock:
            if self._closed or self._process != os.getpid():
                return
            try:
                if self._writer.held:
                    self.snapshot()
            except (StmError, OSError) as error:
                # All documents are committed; an error here would make the caller believe otherwise.
                logger.warning("%s: closed without a snapshot: %s", self._path, error)
            finally:
                self._closed = True
                self._index = None
                self._store.close()
                self._writer.release()

    # -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock:
            if self._process != os.getpid():
                raise IndexFolderError(
                    f"The index {str(self._path)!r} was opened in process {self._process} and is used in its "
                    f"fork {os.getpid()}; SQLite files do not survive that. Open it in each process."
                )
            if self._closed:
                raise IndexFolderError(f"The index {str(self._path)!r} is closed. Open it again.")
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guard():
            self._check_writable()
            self._writer.acquire()
            with self._store.writing():
                yield

    def _check_writable(self) -> None:
        if self._read_only:
            raise IndexFolderError(
                f"The index {str(self._path)!r} was opened with read_only=True, so it is not changed. "
                "Open it without to add or delete."
            )

    def _load(self) -> None:
        with self._store.reading():
            if self._store.index_id() != self._manifest.index_id:
                raise IndexFolderError(
                    f"{str(self._path)!r}: {STORE_NAME} belongs to the index {self._store.index_id()!r}, the "
                    f"manifest to {self._manifest.index_id!r}; files of two indexes were mixed. "
                    "Restore the folder from a backup, or index the documents again."
                )
            snapshot = self._manifest.snapshot
            # A store put back from a backup is older than the snapshot beside it, and does not know it.
            if snapshot is not None and snapshot.sha256 == self._store.snapshot_sha256():
                self._index = load_snapshot(self._path, self._manifest)
                self._position = snapshot.position
            if len(self._catch_up()) != self._store.count():
                logger.warning("%s: snapshot and documents disagree; rebuilding.", self._path)
                self._index = None
                if len(self._catch_up()) != self._store.count():
                    raise IndexFolderError(
                        f"{str(self._path)!r}: {STORE_NAME} holds {self._store.count()} documents but "
                        f"{len(self._catch_up())} vectors; the file is damaged. Restore it from a backup, or "
                        "index the documents again."
                    )

    def _catch_up(self) -> VectorIndex:
        """Bring the vector index to the store's state, inside a read transaction."""
        last = self._store.last_position()
        index = self._index
        if index is not None and self._position == last:
            return index
        self._index = None  # what an interrupted replay leaves behind is never searched
        if index is None or self._position > last or self._position < self._store.trimmed_through():
            index = new_index(self._manifest.kind, self._manifest.dimension)
            for labels, vectors in self._store.all_vectors():
                index.add(labels, vectors)
        else:
            for changes in self._store.changes_after(self._position):
                index.remove(changes.removed)
                index.add(changes.added, changes.vectors)
        self._index, self._position = index, last
        return index


def unit_rows(vectors: npt.ArrayLike, *, rows: int, dimension: int) -> Vectors:
    """Return vectors as float32 (rows, dimension), each of length 1.

    Raises:
        ConfigError: If they have another shape.
        DataError: If one is not finite or zero, so that it has no direction.
    """
    array = np.asarray(vectors, dtype=np.float64)
    if array.shape != (rows, dimension):
        raise ConfigError(
            f"Got vectors of shape {array.shape}, but the index needs {(rows, dimension)}: one row per text, "
            f"of its model's {dimension} dimensions. Encode with the embedder that the index was made with."
        )
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise DataError(
            f"Vector {bad[0]} is zero or not finite, so it is similar to nothing ({len(bad)} of {rows} are). "
            "Nothing was written. Look at the text that it was made from."
        )
    unit: Vectors = (array / norms).astype(np.float32)
    return unit


def _exact_top(index: VectorIndex, queries: Vectors, k: int) -> list[list[tuple[int, float]]]:
    """The k best labels and scores of each query; ties by label, scores free of how FAISS blocks its sums.

    FAISS gives equal texts scores that differ in the last bit, and breaks ties as it likes. So a few more
    candidates than k are scored again, and more still while the k-th best ties with the last candidate.
    """
    first = min(k + _SPARE, len(index))
    if first == 0 or len(queries) == 0:
        return [[] for _ in queries]
    found = index.search(queries, first)
    return [_rescored(index, query, labels, k) for query, labels in zip(queries, found, strict=True)]


def _rescored(index: VectorIndex, query: Vectors, labels: Labels, k: int) -> list[tuple[int, float]]:
    while True:
        scores = index.reconstruct(labels).astype(np.float64) @ query.astype(np.float64)
        best = np.lexsort((labels, -scores))[:k]
        if len(labels) == len(index) or scores[best[-1]] > scores.min() + _ROUNDING:
            return [(int(labels[place]), float(scores[place])) for place in best]
        labels = index.search(query[None, :], min(2 * len(labels), len(index)))[0]


def _create_files(path: Path, manifest: IndexManifest) -> None:
    """Make the folder under another name first: a crash leaves no half index at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        partial.chmod(0o755)
        DocumentStore.create(partial / STORE_NAME, index_id=manifest.index_id)
        (partial / LOCK_NAME).touch()
        write_index_manifest(partial, manifest)
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(path.parent)
