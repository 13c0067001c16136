"""The retriever: an embedder and an index folder that belong together."""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from stm_retriever.embedder import Embedder, Progress
from stm_retriever.errors import ArtifactMismatchError, ConfigError, ModelFolderError
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef, IndexManifest, is_index_folder, read_index_manifest
from stm_retriever.index.rows import check_documents, check_ids
from stm_retriever.types import Document, Hit


class Retriever:
    """Add documents, search them. Make one with :meth:`create`, come back to it with :meth:`open`.

    May be used from several threads at once. Many processes may search one index while one writes; the first
    ``add`` or ``delete`` takes the writer's place until :meth:`close`.
    """

    def __init__(self, index: IndexFolder, embedder: Embedder) -> None:
        self._index = index
        self._embedder = embedder

    @classmethod
    def create(
        cls, path: str | Path, *, embedder: Embedder, kind: str = "flat", exist_ok: bool = False
    ) -> Retriever:
        """Make an empty index for an embedder's vectors.

        Args:
            path: The index folder; must not exist yet or be empty.
            embedder: What will encode documents and queries.
            kind: The kind of vector index; ``"flat"`` compares with every vector.
            exist_ok: Open the index that is there, if it was made with this embedder.

        Raises:
            IndexFolderError: If something is at ``path`` already, or it cannot be written.
            ArtifactMismatchError: With ``exist_ok``, if the index was made with another model.
            ConfigError: If there is no such kind, or the index that is there is of another one.
        """
        path = Path(path).expanduser()
        if exist_ok and is_index_folder(path):
            found = read_index_manifest(path).kind
            if found != kind:
                raise ConfigError(
                    f"The index {str(path)!r} is of kind {found!r}, not {kind!r}. Pass kind={found!r}, or "
                    "take another path."
                )
            return cls.open(path, embedder=embedder)
        reference = EmbedderRef(
            name=embedder.name,
            fingerprint=embedder.fingerprint,
            dimension=embedder.dimension,
            variant=embedder.variant,
            path=_relative(embedder.path, path),
            hub_name=embedder.hub_name,
            revision=embedder.revision,
        )
        return cls(IndexFolder.create(path, embedder=reference, kind=kind), embedder)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: Embedder | None = None,
        variant: str | None = None,
        read_only: bool = False,
    ) -> Retriever:
        """Open an index.

        Args:
            path: The index folder.
            embedder: What to encode with; None loads the model that the index was made with, from where it
                was then (relative to the index) or from the local hub cache. Nothing is downloaded.
            variant: The ONNX variant of the loaded model; None takes the one that the index was made with.
            read_only: Refuse to add and delete.

        Raises:
            IndexFolderError: If the index is missing, damaged, or of a newer schema.
            ModelFolderError: If the model is not where it was.
            ArtifactMismatchError: If the model is another one than the index was made with.
            ConfigError: If both ``embedder`` and ``variant`` are given.
        """
        path = Path(path).expanduser()
        if embedder is not None and variant is not None:
            raise ConfigError(
                f"Got an embedder and variant={variant!r}; which one counts? Load the embedder with that "
                "variant, or leave it out."
            )
        manifest = read_index_manifest(path)
        if embedder is None:
            embedder = _load_embedder(path, manifest, variant)
        _check_match(path, manifest, embedder)
        return cls(IndexFolder(path, read_only=read_only), embedder)

    @property
    def path(self) -> Path:
        """The index folder, absolute."""
        return self._index.path

    @property
    def embedder(self) -> Embedder:
        """What encodes documents and queries."""
        return self._embedder

    @property
    def manifest(self) -> IndexManifest:
        """What the index says about itself."""
        return self._index.manifest

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True  # an empty index is still one

    # Writing -----------------------------------------------------------------------------------------------

    def add(self, documents: Iterable[Document], *, show_progress: Progress = False) -> int:
        """Encode and store documents; one whose id is there already is replaced.

        The whole call is one transaction: when it returns, all its documents are on disk and survive a crash;
        when it raises, none is changed. For a large collection call it with some thousands at a time.

        Returns:
            How many documents were stored.

        Raises:
            DataError: If an id comes twice or a text is empty; the message names it.
            ConfigError: If an item is no :class:`Document`.
            IndexFolderError: If another writer is at work, or the disk is full.
        """
        checked = check_documents(documents)
        texts = [document.text for document in checked]
        return self._index.put(checked, self._embedder.encode_document(texts, show_progress=show_progress))

    def add_vectors(self, documents: Iterable[Document], vectors: npt.ArrayLike) -> int:
        """Store documents whose vectors are there already, made by this model's ``encode_document``.

        Args:
            documents: n documents.
            vectors: (n, dimension); stored as float32 at length 1.

        Returns:
            How many documents were stored.

        Raises:
            ConfigError: If the vectors have another shape.
            DataError: As for :meth:`add`, and if a vector is not finite or zero.
            IndexFolderError: If another writer is at work, or the disk is full.
        """
        return self._index.put(check_documents(documents), np.asarray(vectors, dtype=np.float32))

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents, in one transaction; unknown ids are ignored.

        Returns:
            How many documents were there.
        """
        return self._index.delete(check_ids(ids))

    def close(self) -> None:
        """Save a snapshot of the vectors if anything was written, and let other writers in."""
        self._index.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading -----------------------------------------------------------------------------------------------

    def get(self, ids: Iterable[str]) -> list[Document | None]:
        """Return the documents with these ids, in that order; None where there is none."""
        return self._index.get(check_ids(ids))

    def count(self) -> int:
        """Count the documents."""
        return self._index.count()

    def documents(self) -> Iterator[Document]:
        """Yield every document in order of insertion (a replaced one counts as inserted anew)."""
        return self._index.documents()

    def search(self, query: str, k: int = 10, *, group_by_parent: bool = False) -> list[Hit]:
        """Find the k documents most similar to a query.

        Args:
            query: The question; the query prompt is put before it.
            k: How many hits, >= 1; fewer come back from a smaller index.
            group_by_parent: At most one hit, the best, of each parent.

        Returns:
            Hits, best first, equal ones in order of insertion.

        Raises:
            ConfigError: If k is below 1.
            DataError: If the query is empty.
        """
        number = _check_k(k)
        vector = self._embedder.encode_query([query])[0]
        return self.search_vector(vector, number, group_by_parent=group_by_parent)

    def search_batch(
        self, queries: Sequence[str], k: int = 10, *, group_by_parent: bool = False
    ) -> list[list[Hit]]:
        """Search for several queries at once; the result has one list of hits per query."""
        number = _check_k(k)
        vectors = self._embedder.encode_query(queries)
        if group_by_parent:
            return [self._search_parents(vector, number) for vector in vectors]
        return [_hits(row) for row in self._index.search(vectors, number)]

    async def asearch(self, query: str, k: int = 10, *, group_by_parent: bool = False) -> list[Hit]:
        """Same as :meth:`search`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.search, query, k, group_by_parent=group_by_parent)

    def search_vector(
        self, vector: npt.ArrayLike, k: int = 10, *, group_by_parent: bool = False
    ) -> list[Hit]:
        """Search with a query vector that is there already, made by this model's ``encode_query``.

        Args:
            vector: (dimension,); its length does not matter.
            k: How many hits, >= 1.
            group_by_parent: At most one hit, the best, of each parent.

        Raises:
            ConfigError: If k is below 1 or the vector has another shape.
            DataError: If the vector is not finite or zero.
        """
        number = _check_k(k)
        array = np.asarray(vector, dtype=np.float32)
        if array.ndim != 1:
            raise ConfigError(
                f"Got a vector of shape {array.shape}; a query vector has one axis. Pass row by row."
            )
        if group_by_parent:
            return self._search_parents(array, number)
        return _hits(self._index.search(array[None, :], number)[0])

    def _search_parents(self, vector: npt.NDArray[np.float32], k: int) -> list[Hit]:
        wanted = 4 * k
        while True:
            hits = _hits(self._index.search(vector[None, :], wanted)[0])
            best: dict[str, Hit] = {}
            for hit in hits:
                best.setdefault(hit.id if hit.parent_id is None else hit.parent_id, hit)
            if len(best) >= k or len(hits) < wanted:
                return list(best.values())[:k]
            wanted *= 4

    def __repr__(self) -> str:
        return f"Retriever(path={str(self.path)!r}, embedder={self._embedder!r})"


def _hits(found: Sequence[tuple[Document, float]]) -> list[Hit]:
    return [
        Hit(
            id=document.id,
            score=score,
            text=document.text,
            metadata=dict(document.metadata),
            parent_id=document.parent_id,
            start=document.start,
            end=document.end,
        )
        for document, score in found
    ]


def _check_k(k: int) -> int:
    try:
        number = operator.index(k)
    except TypeError as error:
        raise ConfigError(f"k={k!r} is a {type(k).__name__}, not a whole number. Pass 1 or more.") from error
    if isinstance(k, bool) or number < 1:
        raise ConfigError(f"k={k!r}: a search gives at least one hit. Pass 1 or more.")
    return number


def _relative(model: Path, index: Path) -> str:
    """Where the model lies, seen from the index, so that the two can be moved together."""
    try:
        return Path(os.path.relpath(model.resolve(), index.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        return model.resolve().as_posix()


def _load_embedder(path: Path, manifest: IndexManifest, variant: str | None) -> Embedder:
    wanted = manifest.embedder
    folder = (path.resolve() / wanted.path).resolve()
    chosen = variant or wanted.variant
    if folder.is_dir():
        return Embedder.load(folder, variant=chosen)
    if wanted.hub_name is not None:
        try:
            return Embedder.load(
                wanted.hub_name, revision=wanted.revision, local_files_only=True, variant=chosen
            )
        except ModelFolderError as error:
            raise _model_gone(path, folder, wanted) from error
    raise _model_gone(path, folder, wanted)


def _model_gone(path: Path, folder: Path, wanted: EmbedderRef) -> ModelFolderError:
    hub = "" if wanted.hub_name is None else f", nor {wanted.hub_name!r} in the local Hugging Face cache"
    return ModelFolderError(
        f"The index {str(path)!r} was made with the model {wanted}, which is not at {str(folder)!r} any more"
        f"{hub}; queries must be encoded by the same model. Pass it: "
        f"Retriever.open({str(path)!r}, embedder=Embedder.load(FOLDER)), or put it back there."
    )


def _check_match(path: Path, manifest: IndexManifest, embedder: Embedder) -> None:
    made_with = manifest.embedder
    if made_with.fingerprint == embedder.fingerprint and made_with.dimension == embedder.dimension:
        return
    raise ArtifactMismatchError(
        f"The index {str(path)!r} was made with the model {made_with}, but the one at {str(embedder.path)!r} "
        f"is {embedder.name!r} ({embedder.fingerprint[:19]}..., {embedder.dimension} dimensions). Vectors of "
        "two models, or of two prompts, cannot be compared; the hits would be noise. Open it with the first "
        f"model, or index the documents again with this one: stm-train index --model {embedder.path} --out "
        "FOLDER"
    )
