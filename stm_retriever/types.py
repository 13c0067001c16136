"""What goes into an index and what comes out of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["query", "document"]
"""Which of the two prompts a text gets."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text to be found, with what the application wants back beside it.

    Attributes:
        id: The application's own name for it; adding the same id again replaces the document.
        text: What is embedded (after the document prompt) and returned.
        metadata: JSON values under string keys.
        parent_id: The longer document that this is a part of, if any.
        start: Offset of the part's first character in the parent's text.
        end: Offset behind the part's last character in the parent's text.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent_id: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Attributes:
        id: The document's id.
        score: Higher is better. What it is depends on the search: for ``"dense"`` the cosine similarity to
            the query, in [-1, 1] up to rounding (``searching.relevance`` brings it to [0, 1]); for
            ``"lexical"`` the BM25 score, which only compares hits of one query; for ``"hybrid"`` the sum of
            1 / (60 + rank) over the two rankings, at most 2 / 61, or with ``fusion="weighted"`` a share in
            [0, 1]; after a reranker what the reranker gave.
        text: The document's text.
        metadata: The document's metadata, a copy that the caller may change.
        parent_id: As in the document.
        start: As in the document.
        end: As in the document.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    parent_id: str | None = None
    start: int | None = None
    end: int | None = None
