"""The retriever: an embedder and an index folder that belong together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from stm_retriever.embedder import Progress
from stm_retriever.errors import ConfigError
from stm_retriever.foreign import AnyEmbedder, Encoder, as_embedder
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.kinds import Tuned
from stm_retriever.index.manifest import IndexManifest, is_index_folder, read_index_manifest
from stm_retriever.index.rows import check_documents, check_ids
from stm_retriever.onnx_session import Device
from stm_retriever.opening import check_match, load_embedder, reference_of
from stm_retriever.searches import Searches, Where
from stm_retriever.types import Document


class Retriever(Searches):
    """Add documents, search them. Make one with :meth:`create`, come back to it with :meth:`open`.

    May be used from several threads at once. Many processes may search one index while one writes; the first
    ``add`` or ``delete`` takes the writer's place until :meth:`close`.
    """

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        embedder: AnyEmbedder | Encoder,
        kind: str | None = None,
        exist_ok: bool = False,
        embedder_id: str | None = None,
    ) -> Retriever:
        """Make an empty index for an embedder's vectors.

        Args:
            path: The index folder; must not exist yet or be empty.
            embedder: What will encode documents and queries: an :class:`Embedder`, or any object with
                ``encode_query`` and ``encode_document`` that map a list of texts to vectors.
            kind: The kind of vector index: ``"flat"`` compares with every vector, ``"auto"`` chooses by size.
                None takes ``"flat"``, or with ``exist_ok`` what is there.
            exist_ok: Open the index that is there, if it was made with this embedder.
            embedder_id: What to know somebody else's embedder by; None takes its class and where it puts two
                probe texts.

        Raises:
            IndexFolderError: If something is at ``path`` already, or it cannot be written.
            ArtifactMismatchError: With ``exist_ok``, if the index was made with another model.
            ConfigError: If there is no such kind, the index that is there is of another one, or the embedder
                does not give float32 vectors.
        """
        path = Path(path).expanduser()
        known = as_embedder(embedder, embedder_id)
        if exist_ok and is_index_folder(path):
            found = read_index_manifest(path).kind
            if kind not in (None, found):
                raise ConfigError(
                    f"The index {str(path)!r} is of kind {found!r}, not {kind!r}. Pass kind={found!r}, or "
                    f"change it: Retriever.open({str(path)!r}).change_kind({kind!r})"
                )
            return cls.open(path, embedder=known)
        return cls(IndexFolder.create(path, embedder=reference_of(known, path), kind=kind or "flat"), known)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: AnyEmbedder | Encoder | None = None,
        variant: str | None = None,
        device: Device = "cpu",
        threads: int | None = None,
        read_only: bool = False,
        embedder_id: str | None = None,
        index_device: str = "cpu",
        mmap: bool = True,
    ) -> Retriever:
        """Open an index.

        Args:
            path: The index folder.
            embedder: What to encode with; None loads the model that the index was made with, from where it
                was then (relative to the index) or from the local hub cache. Nothing is downloaded.
            variant: The ONNX variant of the loaded model; None takes the one that the index was made with.
            device: Where the loaded model runs; ``"cuda"`` is an error where it cannot, ``"auto"`` is not.
            threads: CPU threads of the loaded model; None takes those that this process may use.
            read_only: Refuse to add and delete.
            embedder_id: As in :meth:`create`, where the index was made with one.
            index_device: Where vectors are compared: ``"cpu"``, or ``"cuda"`` or ``"cuda:0,1"``, where a
                copy of the index is searched while the one in the folder stays the truth.
            mmap: Map the saved vector index into memory instead of reading it whole.

        Raises:
            IndexFolderError: If the index is missing, damaged, or of a newer schema.
            ModelFolderError: If the model is not where it was.
            ArtifactMismatchError: If the model is another one than the index was made with.
            ConfigError: If ``embedder`` is given and also what a model would be loaded with.
            ProviderError: If the device is not there.
        """
        path = Path(path).expanduser()
        loading = {"variant": variant, "device": None if device == "cpu" else device, "threads": threads}
        given = [f"{name}={value!r}" for name, value in loading.items() if value is not None]
        if embedder is not None and given:
            raise ConfigError(
                f"Got an embedder that is loaded already and also {', '.join(given)}; which one counts? Load "
                "the embedder with that, or leave it out."
            )
        manifest = read_index_manifest(path)
        known: AnyEmbedder
        if embedder is None:
            known = load_embedder(path, manifest, variant=variant, device=device, threads=threads)
        else:
            known = as_embedder(embedder, embedder_id)
        check_match(path, manifest, known)
        index = IndexFolder(path, read_only=read_only, device=index_device, mmap=mmap)
        return cls(index, known)

    @property
    def path(self) -> Path:
        """The index folder, absolute."""
        return self._index.path

    @property
    def embedder(self) -> AnyEmbedder:
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

        Documents that are stored already just as they are, are neither encoded nor written again, so that
        adding a collection anew costs what has changed in it. The whole call is one transaction: when it
        returns, all its documents are on disk and survive a crash; when it raises, none is changed. For a
        large collection call it with some thousands at a time.

        Returns:
            How many documents were given; all of them are stored now.

        Raises:
            DataError: If an id comes twice or a text is empty; the message names it.
            ConfigError: If an item is no :class:`Document`.
            IndexFolderError: If another writer is at work, or the disk is full.
        """
        checked = check_documents(documents)
        known = self._index.unchanged(checked)
        fresh = [document for document, same in zip(checked, known, strict=True) if not same]
        texts = [document.text for document in fresh]
        self._index.put(fresh, self._embedder.encode_document(texts, show_progress=show_progress))
        return len(checked)

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

    def delete_where(self, where: Where) -> int:
        """Delete the documents that a metadata filter takes, in one transaction.

        Returns:
            How many there were.

        Raises:
            ConfigError: If the filter is no filter, or empty; :meth:`clear` deletes everything.
            IndexFolderError: If another writer is at work.
        """
        return self._index.delete_where(where)

    def clear(self) -> int:
        """Delete every document, in one transaction. Returns how many there were."""
        return self._index.delete_where({"$id": {"$exists": True}})

    def compact(self) -> None:
        """Give back what deleted and replaced documents still hold, and save a snapshot.

        Raises:
            IndexFolderError: If another writer is at work, or the disk is full.
        """
        self._index.compact()

    def tune(self, *, recall: float = 0.95, k: int = 10, queries: Sequence[str] | None = None) -> Tuned:
        """Set the search parameters of an approximate index for a recall, measured on its own vectors.

        Args:
            recall: The share of the exact top k that an average search must find, in (0, 1].
            k: How many hits.
            queries: Questions like those that will be asked; None takes documents for them.

        Returns:
            The parameters, with recall and p50 as measured.

        Raises:
            ConfigError: If ``recall`` or ``k`` cannot be used.
            IndexFolderError: If another writer is at work.
        """
        vectors = None if queries is None else self._embedder.encode_query(queries)
        return self._index.tune(recall=recall, k=k, queries=vectors)

    def change_kind(self, kind: str) -> None:
        """Rebuild the vector index as another kind, from the stored vectors; nothing is encoded.

        Raises:
            ConfigError: If there is no such kind.
            IndexFolderError: If another writer is at work, or it cannot be written.
        """
        self._index.change_kind(kind)

    def snapshot(self) -> None:
        """Save the vector index now, so that the next open is fast; :meth:`close` does it too."""
        self._index.snapshot()

    def close(self) -> None:
        """Save a snapshot of the vectors if anything was written, and let other writers in."""
        self._index.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Beside an event loop ----------------------------------------------------------------------------------

    async def aadd(self, documents: Iterable[Document]) -> int:
        """Same as :meth:`add`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.add, documents)

    async def adelete(self, ids: Iterable[str]) -> int:
        """Same as :meth:`delete`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.delete, ids)

    def __repr__(self) -> str:
        return f"Retriever(path={str(self.path)!r}, embedder={self._embedder!r})"


def refuse_late_settings(retriever: Retriever, given: Mapping[str, object], *, read_only: bool) -> None:
    """Refuse settings of an index beside a retriever that is open already.

    Args:
        retriever: The open one.
        given: Settings by name; None: not given.
        read_only: Likewise.

    Raises:
        ConfigError: Naming what could no longer take effect.
    """
    late = sorted(name for name, value in given.items() if value is not None)
    if late or read_only:
        raise ConfigError(
            f"STMVectorStore got a retriever= that is open already ({str(retriever.path)!r}) and "
            f"also {', '.join(late) or 'read_only'}, which could no longer take effect. Pass the one "
            "or the other."
        )


def open_or_create(
    path: str | Path, embedder: AnyEmbedder | None, kind: str | None = None, read_only: bool = False
) -> Retriever:
    """Open the index that is there, or make one; what the frameworks' vector stores do.

    Args:
        path: The index folder.
        embedder: None takes the model that the index was made with.
        kind: The kind to make; must be the kind of an index that is there.
        read_only: Only open, and refuse to add and delete.

    Raises:
        ConfigError: If an index must be made without an embedder, or that which is there is of another kind.
        StmError: What :meth:`Retriever.open` and :meth:`Retriever.create` raise.
    """
    path = Path(path).expanduser()
    if embedder is not None and not read_only:
        return Retriever.create(path, embedder=embedder, kind=kind, exist_ok=True)
    if not read_only and not is_index_folder(path):
        raise ConfigError(
            f"There is no index at {str(path)!r}, and no embedder to make one with. Check the path, or pass "
            "the embedding model."
        )
    found = read_index_manifest(path).kind
    if kind not in (None, found):
        raise ConfigError(f"The index {str(path)!r} is of kind {found!r}, not {kind!r}. Leave kind= out.")
    return Retriever.open(path, embedder=embedder, read_only=read_only)
