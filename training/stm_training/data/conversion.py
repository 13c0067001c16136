"""Collections as training pairs, and training pairs as a collection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from stm_training.data.records import Collection, Pair, Passage

SOURCE = KIND = "labelled"


def collection_pairs(collection: Collection) -> list[Pair]:
    """One pair per query and relevant passage; what is judged 0 or below for the query is its negatives."""
    pairs: list[Pair] = []
    for query_id, grades in collection.qrels.items():
        negatives = tuple(collection.corpus[name].content for name, grade in grades.items() if grade <= 0)
        pairs.extend(
            Pair(
                query=collection.queries[query_id],
                positive=collection.corpus[name].content,
                negatives=negatives,
                query_id=query_id,
                positive_id=name,
                source=SOURCE,
                kind=KIND,
            )
            for name, grade in grades.items()
            if grade > 0
        )
    return pairs


def pairs_collection(name: str, pairs: Iterable[Pair], corpus: Iterable[Passage] = ()) -> Collection:
    """The collection that the pairs speak of: grade 1 for positives, 0 for negatives.

    Source, kind and prompt of a pair have no place in a collection.

    Args:
        name: Of the collection.
        pairs: Their ids are kept; a query or text without one gets one, and a second text under the same id
            (a sentence was taken out of it) gets an id of its own.
        corpus: Passages that the pairs' texts may stand in, and that are kept whole.

    Returns:
        The collection: ``corpus`` first, then texts that are not in it.
    """
    shelf = _Shelf(corpus)
    queries: dict[str, str] = {}
    query_ids: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for pair in pairs:
        query_id = _query_id(pair, queries, query_ids)
        grades = qrels.setdefault(query_id, {})
        grades[shelf.place(pair.positive, pair.positive_id)] = 1
        for negative in pair.negatives:
            grades.setdefault(shelf.place(negative, None), 0)
    return Collection(name, shelf.passages, queries, qrels)


def _query_id(pair: Pair, queries: dict[str, str], by_text: dict[str, str]) -> str:
    wanted = pair.query_id if pair.query_id is not None else by_text.get(pair.query, f"q{len(queries) + 1}")
    name, number = wanted, 2
    while queries.get(name, pair.query) != pair.query:
        name, number = f"{wanted}-{number}", number + 1
    queries[name] = pair.query
    by_text.setdefault(pair.query, name)
    return name


class _Shelf:
    """Passages by id, and the id of each text."""

    def __init__(self, corpus: Iterable[Passage]) -> None:
        self.passages: dict[str, Passage] = {passage.id: passage for passage in corpus}
        self._ids: dict[str, str] = {}
        for passage in self.passages.values():
            self._ids.setdefault(passage.content, passage.id)
            self._ids.setdefault(passage.text, passage.id)

    def place(self, text: str, wanted: str | None) -> str:
        """The id of a text; it is put on the shelf if it is not there."""
        if wanted is not None and self._holds(wanted, text):
            return wanted
        if text in self._ids and (wanted is None or wanted in self.passages):
            return self._ids[text]
        name = wanted if wanted is not None and wanted not in self.passages else _text_id(text, wanted)
        self.passages[name] = Passage(name, text)
        self._ids.setdefault(text, name)
        return name

    def _holds(self, name: str, text: str) -> bool:
        passage = self.passages.get(name)
        return passage is not None and text in (passage.content, passage.text)


def _text_id(text: str, wanted: str | None) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"text-{digest}" if wanted is None else f"{wanted}/{digest}"
