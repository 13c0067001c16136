"""The records that pass between the stages: passages, pairs, collections, skipped rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stm_retriever.errors import DataError


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable unit of a corpus: a whole document, or a piece of one.

    Attributes:
        id: Unique within its corpus.
        text: The body.
        title: Carried by every piece of a split document.
        metadata: Whatever else the row held.
        parent_id: The document that this piece was cut from; ``None`` for a whole document.
        start: Character offset of the piece in the parent's ``text`` (inclusive).
        end: Character offset of the piece in the parent's ``text`` (exclusive).
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent_id: str | None = None
    start: int | None = None
    end: int | None = None

    @property
    def content(self) -> str:
        """What is embedded: title and text joined by a space, as BEIR does."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example.

    Attributes:
        query: The query's text, without any prompt.
        positive: The text that answers it.
        negatives: Texts that look relevant and are not.
        query_id: Where the query came from, if it has an id.
        positive_id: The passage's id, so that a batch never opposes a passage to itself.
        source: What made the pair: a model's name, ``"extractive"``, ``"labelled"``.
        kind: The kind of query, for instance ``"question"``.
        prompt: A retrieval instruction of this pair's own; ``None``: the recipe's.
        scores: A teacher's scores for this query, on any scale, higher is better: the positive's, then the
            negatives' in their order; ``()`` where there are none.

    Raises:
        DataError: If there are scores, but not one finite score for each text.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    query_id: str | None = None
    positive_id: str | None = None
    source: str = ""
    kind: str = ""
    prompt: str | None = None
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scores and (problem := scores_problem(self.scores, len(self.negatives))):
            message = (
                f"The pair of query {self.query[:60]!r} {problem}. A score that stands beside the wrong text "
                f"teaches the opposite; change negatives with with_negatives(), which keeps both aligned."
            )
            raise DataError(message)

    def with_negatives(self, negatives: Sequence[str]) -> Pair:
        """The pair with other negatives; each score follows its text.

        Args:
            negatives: The new ones: some of the old, others, or both.

        Returns:
            The pair. Where a new negative has no score, it has none at all: half a list is no ranking.
        """
        negatives = tuple(negatives)
        scores: tuple[float, ...] = ()
        if self.scores:
            known = dict(zip(reversed(self.negatives), reversed(self.scores[1:]), strict=True))
            if known.keys() >= set(negatives):
                scores = (self.scores[0], *(known[text] for text in negatives))
        return replace(self, negatives=negatives, scores=scores)


def scores_problem(scores: Sequence[object], negatives: int) -> str | None:
    """Why scores cannot be those of a positive and so many negatives, or ``None`` if they can."""
    if len(scores) != 1 + negatives:
        return f"has {len(scores)} scores for 1 positive and {negatives} negatives"
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not _is_finite(score):
            return f"has a score that is no finite number: scores[{index}] is {str(score)[:40]}"
    return None


def _is_finite(score: int | float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer of some hundred digits
        return False


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that could not be used, and was left out because the caller allowed it.

    Attributes:
        file: The file as the caller named it.
        line: Counted from 1.
        cause: What was found, with the value.
    """

    file: str
    line: int
    cause: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.cause}"


@dataclass(frozen=True)
class Collection:
    """One split of a collection: the whole corpus, this split's queries and their judgements.

    Attributes:
        name: For tables and messages.
        corpus: Passages by id, in file order.
        queries: Query texts by id; only those that this split judges.
        qrels: Grade by query id and passage id; a grade above 0 is relevant.
        skipped: Rows left out in ``on_error="skip"`` mode.
    """

    name: str
    corpus: dict[str, Passage]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    skipped: tuple[SkippedRow, ...] = ()
