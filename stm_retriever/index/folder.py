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
from typing import TYPE_CHECKING

from stm_retriever._version import __version__
from stm_retriever.atomic_write import flush_folder
from stm_retriever.errors import ConfigError, DataError, IndexFolderError, StmError
from stm_retriever.filters import Filter, check_filter
from stm_retriever.index.compaction import (
    VACUUM_SHARE,
    changed_kind,
    remove_other_stores,
    save,
    tuned,
)
from stm_retriever.index.live import LiveIndex, cards
from stm_retriever.index.lock import LOCK_NAME, WriterLock
from stm_retriever.index.manifest import (
    EmbedderRef,
    IndexManifest,
    is_index_folder,
    read_index_manifest,
    write_index_manifest,
)
from stm_retriever.index.ranking import unit_rows
from stm_retriever.index.reading import Reader
from stm_retriever.index.rows import hash_of, row_of
from stm_retriever.index.searching import Found, Searcher, without_vector
from stm_retriever.index.selecting import select
from stm_retriever.index.store import DocumentStore, Writer
from stm_retriever.index.vectors import Vectors, check_kind
from stm_retriever.types import Document

if TYPE_CHECKING:
    from stm_retriever.index.kinds import Tuned

logger = logging.getLogger(__name__)

_PAGE = 500


class IndexFolder:
    """Documents and their vectors on disk. Safe to use from several threads; not across a fork.

    Any number of processes may read while one writes; readers see its commits at their next search.
    """

    def __init__(
        self, path: Path, *, read_only: bool = False, device: str = "cpu", mmap: bool = True
    ) -> None:
        """Open an index folder.

        Args:
            path: The folder.
            read_only: Refuse to change it.
            device: ``"cpu"``, or ``"cuda"`` or ``"cuda:0,1"`` to search a clone of the index on the GPU.
            mmap: Leave the vectors in their file as long as nothing is added.

        Raises:
            IndexFolderError: If it is missing, damaged beyond repair, or of a newer or older schema.
        """
        if device != "cpu":
            cards(device)  # before anything is opened
        self._path = Path(path).absolute()
        self._read_only = read_only
        self._manifest = read_index_manifest(self._path)
        check_kind(self._manifest.kind)
        self._store = DocumentStore(self._path / self._manifest.store, dimension=self._manifest.dimension)
        self._lock_file = WriterLock(self._path)
        self._write_lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._live = LiveIndex(self._path, self._manifest, device=device, mmap=mmap)
        self._searcher = Searcher(self._path, self._store, self._live, self._check_open)
        try:
            with self._store.reading() as reader:
                self._check_owner(reader)
                self._live.open(reader)
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

        Documents that are stored already with the same content and vector are left as they are.

        Args:
            documents: n documents that ``rows.check_documents`` has passed.
            vectors: float32 (n, dimension), finite and not zero; stored at length 1.

        Returns:
            n.

        Raises:
            ConfigError: If the vectors do not have that shape.
            DataError: If a vector is not finite or zero.
            IndexFolderError: If another writer is at work, or the disk is full; nothing is written then.
        """
        unit = unit_rows(vectors, rows=len(documents), dimension=self._manifest.dimension)
        rows = [row_of(document) for document in documents]
        with self._writing() as writer:
            writer.put(rows, unit)
        return len(documents)

    def unchanged(self, documents: Sequence[Document]) -> list[bool]:
        """Tell which documents are stored already just so, and need not be encoded again."""
        rows = [row_of(document) for document in documents]
        with self._reading() as reader:
            known = reader.hashes_of([row[0] for row in rows])
        return [row[0] in known and known[row[0]][1] == hash_of(row) for row in rows]

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents in one transaction; unknown ids are ignored. Returns how many were there."""
        with self._writing() as writer:
            return writer.delete(ids)

    def delete_where(self, where: Filter) -> int:
        """Delete the documents that pass a filter, in one transaction. Returns how many there were.

        Raises:
            ConfigError: If the filter cannot be used, or is empty, which would delete everything.
        """
        check_filter(where)
        if not where:
            raise ConfigError(
                "delete_where got the filter {}, which every document passes. To empty an index make a "
                "new one, or pass a filter that says so, such as {'$id': {'$exists': True}}."
            )
        with self._writing() as writer:
            labels = select(writer, where).tolist()
            writer.delete_labels(labels)
        return len(labels)

    def snapshot(self) -> None:
        """Save the vector index, so that the next open need not replay the log; a no-op if it is saved.

        Raises:
            IndexFolderError: If another writer is at work, or it cannot be written.
        """
        with self._changing():
            self._manifest = save(self._path, self._store, self._live, read_index_manifest(self._path))

    def compact(self) -> None:
        """Rebuild the vector index where that helps, give disk space back, and save a snapshot.

        Readers go on meanwhile. Also deletes what an earlier re-encoding has left.

        Raises:
            IndexFolderError: If another writer is at work, or the disk is full; no document is lost.
        """
        with self._changing():
            self._store.tidy(vacuum=self._store.free_share() > VACUUM_SHARE)
            manifest = read_index_manifest(self._path)
            self._manifest = save(self._path, self._store, self._live, manifest, rebuild=True)
            remove_other_stores(self._path, self._manifest.store)

    def change_kind(self, kind: str) -> None:
        """Build another kind of vector index from the stored vectors; nothing is encoded again.

        Processes that have the folder open keep the old kind in memory until they open it again.

        Raises:
            ConfigError: If there is no such kind.
            IndexFolderError: If another writer is at work, or the disk is full; the old kind stays then.
        """
        check_kind(kind)
        with self._changing():
            manifest = read_index_manifest(self._path)
            self._manifest = changed_kind(self._path, self._store, self._live, manifest, kind)

    def tune(self, *, recall: float = 0.95, k: int = 10, queries: Vectors | None = None) -> Tuned:
        """Find search parameters that reach a recall against exact search, and keep them in the manifest.

        Args:
            recall: The share of the exact top k that an average search must find, in (0, 1].
            k: How many hits.
            queries: Real queries' vectors, float32 (n, dimension); None takes vectors of documents.

        Returns:
            The parameters with recall and p50 as measured.
        """
        if queries is not None:
            queries = unit_rows(queries, rows=len(queries), dimension=self._manifest.dimension)
        with self._changing():
            manifest = read_index_manifest(self._path)
            result, self._manifest = tuned(
                self._path, self._store, self._live, manifest, recall=recall, k=k, queries=queries
            )
        return result

    # Reading -----------------------------------------------------------------------------------------------

    def search(self, queries: Vectors, k: int, *, where: Filter | None = None) -> list[Found]:
        """Find the nearest documents of each query.

        Args:
            queries: float32 (n, dimension), finite and not zero.
            k: How many per query, >= 1; fewer come back from a smaller index.
            where: Only documents that pass this filter.

        Returns:
            Per query (document, cosine similarity), best first, equal ones in order of insertion.

        Raises:
            ConfigError: If the queries do not have that shape, or the filter cannot be used.
            DataError: If a query is not finite or zero.
        """
        unit = unit_rows(queries, rows=len(queries), dimension=self._manifest.dimension)
        check_filter(where)
        return self._searcher.dense(unit, k, where)

    def lexical(self, queries: Sequence[str], k: int, *, where: Filter | None = None) -> list[Found]:
        """Find the documents that share words with each query, ranked by BM25.

        Args:
            queries: Texts.
            k: How many per query, at most.
            where: Only documents that pass this filter.

        Returns:
            Per query (document, BM25 score), best first, higher is better, all above 0.

        Raises:
            ConfigError: If the filter cannot be used.
        """
        check_filter(where)
        return self._searcher.lexical(queries, k, where)

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Return the documents with these ids, in that order; None where there is none."""
        with self._reading() as reader:
            found = reader.by_ids(list(dict.fromkeys(ids)))
        return [found.get(given) for given in ids]

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """Return stored vectors, float32 (n, dimension), of length 1, in the order of ``ids``.

        Raises:
            DataError: If there is no document with one of the ids.
        """
        with self._reading() as reader:
            labels = reader.labels_of(list(dict.fromkeys(ids)))
            for given in ids:
                if given not in labels:
                    raise DataError(f"There is no document {given!r} in {str(self._path)!r}. Check the id.")
            vectors = reader.vectors_under([labels[given] for given in ids])
        if vectors is None:
            raise without_vector(self._path)
        return vectors

    def count(self, *, where: Filter | None = None) -> int:
        """Count the documents, or those that pass a filter."""
        check_filter(where)
        with self._reading() as reader:
            if not where:
                return reader.count()
            return len(self._searcher.selected(reader, where, reader.last_position()))

    def documents(self, *, where: Filter | None = None) -> Iterator[Document]:
        """Yield every document that passes a filter, in order of insertion.

        Writes in between are seen or not, never half.
        """
        check_filter(where)
        return self._every() if not where else self._every_selected(where)

    def close(self) -> None:
        """Save a snapshot if this object wrote, and give everything back. Closing twice is fine."""
        with self._write_lock:
            if self._closed or self._process != os.getpid():
                return
            try:
                if self._lock_file.held:
                    self.snapshot()
            except (StmError, OSError) as error:
                # All documents are committed; an error here would make the caller believe otherwise.
                logger.warning("%s: closed without a snapshot: %s", self._path, error)
            finally:
                self._closed = True
                with self._live.gate.alone():
                    self._live.index = None
                self._store.close()
                self._lock_file.release()

    # -------------------------------------------------------------------------------------------------------

    def _every(self) -> Iterator[Document]:
        last = 0
        while True:
            with self._reading() as reader:
                page = reader.page(last, _PAGE)
            if not page:
                return
            for label, document in page:
                last = label
                yield document

    def _every_selected(self, where: Filter) -> Iterator[Document]:
        with self._reading() as reader:
            labels = select(reader, where).tolist()
        for start in range(0, len(labels), _PAGE):
            with self._reading() as reader:
                page = reader.by_labels(labels[start : start + _PAGE])
            yield from (page[label] for label in sorted(page))

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise IndexFolderError(
                f"The index {str(self._path)!r} was opened in process {self._process} and is used in its "
                f"fork {os.getpid()}; SQLite files do not survive that. Open it in each process."
            )
        if self._closed:
            raise IndexFolderError(f"The index {str(self._path)!r} is closed. Open it again.")

    @contextmanager
    def _reading(self) -> Iterator[Reader]:
        self._check_open()
        with self._store.reading() as reader:
            yield reader

    @contextmanager
    def _writing(self) -> Iterator[Writer]:
        with self._changing(), self._store.writing() as writer:
            yield writer

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the one writer, of all threads and processes."""
        with self._write_lock:
            self._check_open()
            if self._read_only:
                raise IndexFolderError(
                    f"The index {str(self._path)!r} was opened with read_only=True, so it is not changed. "
                    "Open it without to add or delete."
                )
            if not self._lock_file.held:
                self._lock_file.acquire()
                self._check_same_store()
            yield

    def _check_same_store(self) -> None:
        """Refuse to write into documents that another process has re-encoded since this one opened them."""
        store = read_index_manifest(self._path).store
        if store != self._manifest.store:
            self._lock_file.release()
            raise IndexFolderError(
                f"The index {str(self._path)!r} was re-encoded since it was opened here (its documents "
                f"are now in {store!r}), so nothing is written to the old ones. Open it again with the new "
                "model."
            )

    def _check_owner(self, reader: Reader) -> None:
        if reader.index_id() != self._manifest.index_id:
            raise IndexFolderError(
                f"{str(self._path)!r}: {self._manifest.store} belongs to the index {reader.index_id()!r}, "
                f"the manifest to {self._manifest.index_id!r}; files of two indexes were mixed. "
                "Restore the folder from a backup, or index the documents again."
            )


def _create_files(path: Path, manifest: IndexManifest) -> None:
    """Make the folder under another name first: a crash leaves no half index at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        partial.chmod(0o755)
        DocumentStore.create(partial / manifest.store, index_id=manifest.index_id)
        (partial / LOCK_NAME).touch()
        write_index_manifest(partial, manifest)
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(path.parent)
