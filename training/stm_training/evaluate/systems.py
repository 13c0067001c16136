"""Any system on any collection: encode or index, rank, score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import DataError
from stm_training.data.records import Collection
from stm_training.evaluate import metrics
from stm_training.evaluate.bm25 import BM25
from stm_training.evaluate.ranking import rank

BM25_NAME = "bm25"


class Encoder(Protocol):
    """What ranks documents by vectors: :class:`stm_retriever.Embedder`, or a model still in training."""

    def encode_query(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """(n, d) unit vectors of texts in the role of queries."""
        ...

    def encode_document(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """(n, d) unit vectors of texts in the role of documents."""
        ...


def run_encoder(
    encoder: Encoder,
    collection: Collection,
    *,
    k: int = 100,
    exclude_self: bool = False,
    show_progress: bool = False,
) -> metrics.Run:
    """Rank a collection by cosine similarity, queries and documents each in their own role.

    Args:
        encoder: The model.
        collection: One split; its judged queries are ranked against its whole corpus.
        k: How many documents per query.
        exclude_self: See :func:`stm_training.evaluate.ranking.rank`.
        show_progress: Passed to the encoder.

    Returns:
        Query id -> (document id, cosine), best first.

    Raises:
        DataError: If a judged query has no text or a vector is not finite.
    """
    queries = judged_queries(collection)
    documents = {name: passage.content for name, passage in collection.corpus.items()}
    return rank(
        encoder.encode_query(list(queries.values()), show_progress=show_progress),
        encoder.encode_document(list(documents.values()), show_progress=show_progress),
        query_ids=list(queries),
        doc_ids=list(documents),
        k=k,
        exclude_self=exclude_self,
    )


def run_bm25(collection: Collection, *, k: int = 100, exclude_self: bool = False) -> metrics.Run:
    """Rank a collection by BM25; arguments and errors as :func:`run_encoder` and :class:`BM25`."""
    index = BM25({name: passage.content for name, passage in collection.corpus.items()})
    return index.search(judged_queries(collection), k=k, exclude_self=exclude_self)


def run_model(
    model: str,
    collection: Collection,
    *,
    k: int = 100,
    exclude_self: bool = False,
    variant: str = "fp32",
    device: Literal["cpu", "cuda", "auto"] = "cpu",
    download: bool = False,
    show_progress: bool = False,
) -> metrics.Run:
    """Rank a collection with a retriever folder, a name on the hub, or ``bm25``.

    Args:
        model: Folder, hub name, or ``bm25``.
        collection: One split.
        k: How many documents per query.
        exclude_self: See :func:`stm_training.evaluate.ranking.rank`.
        variant: Which ONNX file of the folder.
        device: ``cpu``, ``cuda`` or ``auto``.
        download: Whether the hub may be asked when the cache has no copy.
        show_progress: Show a bar while encoding.

    Raises:
        ModelFolderError: If the model is not there or has no ONNX file.
        DataError: See :func:`run_encoder`.
    """
    if model == BM25_NAME:
        return run_bm25(collection, k=k, exclude_self=exclude_self)
    from stm_retriever import Embedder  # onnxruntime is loaded only by those who encode

    encoder = Embedder.load(model, variant=variant, device=device, local_files_only=not download)
    return run_encoder(encoder, collection, k=k, exclude_self=exclude_self, show_progress=show_progress)


def judged_queries(collection: Collection) -> dict[str, str]:
    """Text of every query that has judgements, in their order.

    Raises:
        DataError: If there is none, or one has no text.
    """
    if not collection.qrels:
        raise DataError(
            f"{collection.name}: no query of this split has judgements, so nothing can be scored."
        )
    unknown = [name for name in collection.qrels if name not in collection.queries]
    if unknown:
        raise DataError(
            f"{collection.name}: {len(unknown)} judged queries have no text, the first is {unknown[0]!r}. "
            "Add them to queries.jsonl or take them out of the qrels."
        )
    return {name: collection.queries[name] for name in collection.qrels}


def self_matches(collection: Collection) -> int:
    """How many judged queries are documents of the corpus themselves: same id and same text."""
    return sum(
        name in collection.corpus
        and text.strip() in (collection.corpus[name].text.strip(), collection.corpus[name].content)
        for name, text in judged_queries(collection).items()
    )
