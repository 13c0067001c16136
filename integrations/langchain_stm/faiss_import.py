"""From a folder of LangChain's FAISS store to an index folder, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from langchain_stm.faiss_pickle import read_docstore
from langchain_stm.foreign import embedder_of
from langchain_stm.vectorstores import STMVectorStore
from stm_retriever import ArtifactMismatchError, DataError, Document, Retriever
from stm_retriever.errors import require
from stm_retriever.foreign import AnyEmbedder

_BATCH = 2000
_ALIKE = 0.98  # cosine of one text's vectors now and then; half precision and batching change far less


def import_faiss(
    folder: str | Path,
    embedding: Embeddings,
    index: str | Path,
    *,
    index_name: str = "index",
    kind: str = "flat",
    embedder_id: str | None = None,
) -> STMVectorStore:
    """Make an index folder of what ``FAISS.save_local(folder)`` of langchain-community wrote.

    Texts, metadata, ids and vectors are taken over; only one text is embedded, to see that the vectors are
    those of ``embedding``. The pickle in the folder is read by a reader that knows a docstore's classes and
    refuses every other name (:mod:`langchain_stm.faiss_pickle`). The ``.faiss`` file is read by FAISS itself,
    which is not made for files of strangers: import folders of your own.

    Args:
        folder: Where ``save_local`` wrote to.
        embedding: The embeddings that the store was made with.
        index: The index folder to make; must not exist yet or be empty.
        index_name: As it was given to ``save_local``.
        kind: The kind of vector index to make.
        embedder_id: As for :class:`STMVectorStore`.

    Returns:
        The store, open. It ranks by cosine similarity, whatever distance the FAISS store used.

    Raises:
        DataError: If a file is missing or damaged, the two do not belong together, or the pickle names
            anything else than a docstore's classes.
        ArtifactMismatchError: If the vectors are not those of ``embedding``.
        IndexFolderError: If something is at ``index`` already.
    """
    folder = Path(folder).expanduser()
    texts, rows = read_docstore(folder / f"{index_name}.pkl")
    vectors = _read_vectors(folder / f"{index_name}.faiss", len(rows))
    documents = _documents(folder, texts, rows)
    embedder = embedder_of(embedding, embedder_id)
    if documents:
        _check_same_model(folder, embedder, documents[0], vectors[0])
    with Retriever.create(index, embedder=embedder, kind=kind) as retriever:
        for start in range(0, len(documents), _BATCH):
            part = slice(start, start + _BATCH)
            retriever.add_vectors(documents[part], vectors[part])
    return STMVectorStore(index, embedding, embedder_id=embedder_id)


def _read_vectors(path: Path, count: int) -> npt.NDArray[np.float32]:
    faiss: Any = require("faiss", extra="cpu", purpose="import_faiss")
    if not path.is_file():
        raise DataError(f"There is no {str(path)!r}. Check the folder and index_name.")
    try:
        index = faiss.read_index(str(path))
        if index.ntotal != count:
            raise DataError(
                f"{str(path)!r} holds {index.ntotal} vectors, the pickle beside it names {count}; they are "
                "not of one save_local(). Save the store anew."
            )
        vectors = index.reconstruct_n(0, count) if count else np.empty((0, index.d), np.float32)
    except RuntimeError as error:
        raise DataError(
            f"{str(path)!r} cannot be read by FAISS, or keeps no vectors that can be taken out: {error}. Add "
            "the texts to a new STMVectorStore instead."
        ) from error
    return np.asarray(vectors, dtype=np.float32)


def _documents(
    folder: Path, texts: dict[str, tuple[str, dict[str, Any]]], rows: dict[int, str]
) -> list[Document]:
    if sorted(rows) != list(range(len(rows))):
        raise DataError(
            f"{str(folder)!r}: the rows of the docstore are not 0 to {len(rows) - 1}, so it is not known "
            "which vector belongs to which text. Save the store anew."
        )
    missing = [name for name in rows.values() if name not in texts]
    if missing:
        raise DataError(
            f"{str(folder)!r}: {len(missing)} vectors have no document, for instance {missing[0]!r}. Save "
            "the store anew."
        )
    return [
        Document(id=rows[row], text=texts[rows[row]][0], metadata=texts[rows[row]][1])
        for row in range(len(rows))
    ]


def _check_same_model(
    folder: Path, embedder: AnyEmbedder, document: Document, stored: npt.NDArray[np.float32]
) -> None:
    fresh = embedder.encode_document([document.text])[0].astype(np.float64)
    if fresh.shape != stored.shape:
        raise ArtifactMismatchError(
            f"{str(folder)!r} holds vectors of {len(stored)} dimensions, {embedder.name!r} gives "
            f"{len(fresh)}; it was made with other embeddings. Pass those, or add the texts to a new "
            "STMVectorStore."
        )
    lengths = np.linalg.norm(fresh) * np.linalg.norm(stored.astype(np.float64))
    alike = float(fresh @ stored.astype(np.float64) / lengths) if lengths > 0 else 0.0
    if not alike >= _ALIKE:
        raise ArtifactMismatchError(
            f"{str(folder)!r}: the stored vector of {document.id!r} and the one that {embedder.name!r} gives "
            f"now have a cosine of {alike:.3f}, so the store was made with other embeddings or prompts. Pass "
            "those, or add the texts to a new STMVectorStore."
        )
