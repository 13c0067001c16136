"""The queries that two systems answer most differently, with their texts, to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stm_training.data.records import Collection, Passage
from stm_training.evaluate.metrics import Run, first_documents

_TITLE_LENGTH = 100


@dataclass(frozen=True, slots=True)
class DocumentRanks:
    """A document and where both systems rank it.

    Attributes:
        id: The document.
        title: Its title, or how its text begins.
        grade: Its judgement; 0 where there is none.
        before: Rank by the reference from 1; None where it did not return the document.
        after: Rank by the other system.
    """

    id: str
    title: str
    grade: int
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class QueryChange:
    """One query.

    Attributes:
        query: Its id.
        text: Its text.
        before: Score of the reference.
        after: Score of the other system.
        difference: ``after`` minus ``before``.
        relevant: Its relevant documents, the highest grade first, at most three.
        top_before: What the reference ranks first, None where it returns nothing.
        top_after: What the other system ranks first.
    """

    query: str
    text: str
    before: float
    after: float
    difference: float
    relevant: tuple[DocumentRanks, ...]
    top_before: DocumentRanks | None
    top_after: DocumentRanks | None

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Changes:
    """The largest differences between two systems: gains with the largest first, losses likewise."""

    gains: tuple[QueryChange, ...]
    losses: tuple[QueryChange, ...]

    def figures(self) -> dict[str, list[dict[str, Any]]]:
        """For JSON."""
        return {
            "gains": [change.figures() for change in self.gains],
            "losses": [change.figures() for change in self.losses],
        }


def largest_changes(
    diffs: Mapping[str, float],
    before: Mapping[str, float],
    collection: Collection,
    runs: tuple[Run, Run],
    *,
    count: int = 5,
) -> Changes:
    """The queries with the largest gain and the largest loss.

    Args:
        diffs: Query id -> score of the system minus the reference's.
        before: Query id -> score of the reference.
        collection: Texts and judgements.
        runs: What the reference and the system returned.
        count: How many of each, at most. Equal differences come in the order of the queries.
    """
    gains = sorted((query for query, diff in diffs.items() if diff > 0), key=lambda query: -diffs[query])
    losses = sorted((query for query, diff in diffs.items() if diff < 0), key=lambda query: diffs[query])

    def described(query: str) -> QueryChange:
        return _describe(query, before[query], diffs[query], collection, runs)

    return Changes(tuple(map(described, gains[:count])), tuple(map(described, losses[:count])))


def _describe(
    query: str, before: float, diff: float, collection: Collection, runs: tuple[Run, Run]
) -> QueryChange:
    orders = [first_documents(query, run.get(query, ())) for run in runs]
    ranks = [{name: rank for rank, name in enumerate(order, start=1)} for order in orders]
    judged = collection.qrels[query]

    def document(name: str) -> DocumentRanks:
        return DocumentRanks(
            name,
            _title(collection.corpus.get(name)),
            judged.get(name, 0),
            ranks[0].get(name),
            ranks[1].get(name),
        )

    relevant = sorted((name for name, grade in judged.items() if grade > 0), key=lambda name: -judged[name])
    tops = [document(order[0]) if order else None for order in orders]
    return QueryChange(
        query,
        collection.queries[query],
        before,
        before + diff,
        diff,
        tuple(document(name) for name in relevant[:3]),
        tops[0],
        tops[1],
    )


def _title(passage: Passage | None) -> str:
    if passage is None:
        return "(not in the corpus)"
    text = " ".join((passage.title or passage.text).split())
    return text if len(text) <= _TITLE_LENGTH else text[: _TITLE_LENGTH - 3].rstrip() + "..."
