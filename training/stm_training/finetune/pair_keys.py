"""What makes two training rows the same document or the same query."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from stm_training.data.records import Pair

KEYS_PER_ROW = 4


def text_key(text: str) -> str:
    """A text with case and white space evened out."""
    return " ".join(text.casefold().split())


def hash_key(kind: str, value: str) -> int:
    """64 bits that stand for a value of a kind, the same in every process.

    Among n values two share theirs with a probability of about n^2 / 2^65: 3e-6 for ten million. Such a
    pair of rows would only never meet in a batch.
    """
    return int.from_bytes(blake2b(f"{kind}\0{value}".encode(), digest_size=8).digest(), "little")


def row_keys(pair: Pair) -> tuple[int, int, int, int]:
    """64-bit keys of a pair's query and positive; pairs that share one must not meet in a batch.

    Ids and texts both count: two documents may carry the same text, and a query may be written twice. Where
    a pair has no id, its text's key stands in the id's place.
    """
    query = hash_key("query", text_key(pair.query))
    text = hash_key("text", text_key(pair.positive))
    return (
        query,
        text,
        query if pair.query_id is None else hash_key("query_id", pair.query_id),
        text if pair.positive_id is None else hash_key("document_id", pair.positive_id),
    )


@dataclass(frozen=True)
class RowTable:
    """What the sampler knows of n pairs; 36 bytes each, whatever their length.

    Attributes:
        keys: (n, 4) uint64; see :func:`row_keys`.
        source: (n,) int32: place of the row's source among ``names``.
        names: The sources, in the order of their first row.
    """

    keys: NDArray[np.uint64]
    source: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(s,) int64: rows of each source."""
        return np.bincount(self.source, minlength=len(self.names)).astype(np.int64)


def row_table(pairs: Sequence[Pair]) -> RowTable:
    """Read the pairs once, in order, keeping none of them."""
    keys = np.zeros((len(pairs), KEYS_PER_ROW), np.uint64)
    source = np.zeros(len(pairs), np.int32)
    names: dict[str, int] = {}
    for row, pair in enumerate(pairs):
        keys[row] = row_keys(pair)
        source[row] = names.setdefault(pair.source, len(names))
    return RowTable(keys, source, tuple(names))


@dataclass(frozen=True, slots=True)
class RelevantTexts:
    """What is relevant to one query; ``text_key(text) in relevant`` asks for a text.

    Attributes:
        texts: 64-bit keys of the texts.
        ids: 64-bit keys of the documents' ids, where they have one.
    """

    texts: frozenset[int] = frozenset()
    ids: frozenset[int] = frozenset()

    def __contains__(self, text: str) -> bool:
        return hash_key("text", text) in self.texts

    def __len__(self) -> int:
        return len(self.texts)


class KnownPositives:
    """What the training data call relevant to each query, in 24 bytes per pair.

    ``known[text_key(query)]`` gives a query's :class:`RelevantTexts`, which are none for an unknown query.

    Args:
        queries: (n,) uint64 keys, in any order.
        texts: (n,) uint64 keys of the relevant texts.
        ids: (n,) uint64 keys of their documents' ids; a text's own key where there is no id.
    """

    def __init__(
        self, queries: NDArray[np.uint64], texts: NDArray[np.uint64], ids: NDArray[np.uint64]
    ) -> None:
        order = np.argsort(queries, kind="stable")
        self._queries, self._texts, self._ids = queries[order], texts[order], ids[order]

    def __getitem__(self, query: str) -> RelevantTexts:
        key = np.uint64(hash_key("query", query))
        first = int(np.searchsorted(self._queries, key, side="left"))
        last = int(np.searchsorted(self._queries, key, side="right"))
        return RelevantTexts(
            frozenset(self._texts[first:last].tolist()), frozenset(self._ids[first:last].tolist())
        )

    def get(self, query: str, default: object = None) -> RelevantTexts:
        """The same; an unknown query has no relevant texts, whatever the default."""
        return self[query]


def known_positives(pairs: Iterable[Pair]) -> KnownPositives:
    """Read the pairs once; see :class:`KnownPositives`."""
    found = tuple(array("Q") for _ in range(3))
    for pair in pairs:
        query, text, _, document = row_keys(pair)
        for keys, key in zip(found, (query, text, document), strict=True):
            keys.append(key)
    queries, texts, ids = (np.array(keys, np.uint64) for keys in found)
    return KnownPositives(queries, texts, ids)


def false_negatives(
    queries: Sequence[str],
    texts: Sequence[str],
    known: KnownPositives,
    document_ids: Sequence[str | None] | None = None,
) -> list[list[bool]]:
    """Mark the texts that are known to be relevant to each query, and so are none of its negatives.

    Args:
        queries: b queries.
        texts: m documents' texts.
        known: See :func:`known_positives`.
        document_ids: The m documents' ids, where they have one: a document that is relevant to a query under
            another wording is none of its negatives either.

    Returns:
        b rows of m booleans.
    """
    ids = [None] * len(texts) if document_ids is None else document_ids
    keys = [
        (hash_key("text", text_key(text)), None if id_ is None else hash_key("document_id", id_))
        for text, id_ in zip(texts, ids, strict=True)
    ]
    relevant = [known[text_key(query)] for query in queries]
    return [[text in row.texts or id_ in row.ids for text, id_ in keys] for row in relevant]
