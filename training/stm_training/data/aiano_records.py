"""What AIANO knows: documents, questions and graded spans; and how collections and pairs see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stm_training.data.records import Collection, Pair, Passage, SkippedRow

SOURCE = "aiano"
KIND = "labelled"
METADATA_KEY = "aiano"
"""Where a collection's documents keep what a query, a grade and a text cannot hold."""

DEFAULT_GRADES: Mapping[str, int] = {
    "distracting": 0,
    "irrelevant": 0,
    "not relevant": 0,
    "non-relevant": 0,
    "hard negative": 0,
    "relevant": 1,
    "partially relevant": 1,
    "somewhat relevant": 1,
    "highly relevant": 2,
    "very relevant": 2,
}
"""Grades of levels by name, whatever their case; 0 is a hard negative."""


LEVEL_KEYS = (
    "level",
    "annotationLevel",
    "annotation_level",
    "relevance_level",
    "relevancy_level",
    "relevance",
)
"""Where a passage's row may hold its level."""


@dataclass(frozen=True, slots=True)
class Span:
    """A highlighted part of a document.

    Attributes:
        document_id: The document.
        start: First character in the document's text.
        end: One past the last character.
        text: What stands there.
        grade: Above 0: relevant, the higher the more; 0: a hard negative.
        row: The row that it was read from, unchanged; empty for a new one.
    """

    document_id: str
    start: int
    end: int
    text: str
    grade: int
    row: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Names document and offsets, for instance ``doc-7#120-310``."""
        return f"{self.document_id}#{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """A question and its spans.

    Attributes:
        id: Unique in the data set.
        question: The question's text.
        spans: In the annotator's order; may be empty.
        row: Everything else of the row (``answer``, ``metadata``, ...), unchanged.
    """

    id: str
    question: str
    spans: tuple[Span, ...]
    row: Mapping[str, Any]


@dataclass(frozen=True)
class AianoDataset:
    """Documents and annotations.

    Attributes:
        name: Of the file or folder.
        documents: By id, in file order; whatever else a document's row holds is its metadata.
        annotations: In file order.
        skipped: Rows left out in ``on_error="skip"`` mode.
    """

    name: str
    documents: dict[str, Passage]
    annotations: tuple[Annotation, ...]
    skipped: tuple[SkippedRow, ...] = ()

    def spans(self) -> list[Passage]:
        """Every highlighted span once, as a piece of its document with its offsets."""
        found = {
            span.id: Passage(
                id=span.id,
                text=span.text,
                title=self.documents[span.document_id].title,
                parent_id=span.document_id,
                start=span.start,
                end=span.end,
            )
            for annotation in self.annotations
            for span in annotation.spans
        }
        return list(found.values())

    def pairs(self) -> list[Pair]:
        """One training pair per question and relevant span; the question's grade-0 spans are its negatives.

        ``positive_id`` is the span's id, which holds document and offsets.
        """
        return [
            Pair(
                query=annotation.question,
                positive=span.text,
                negatives=tuple(dict.fromkeys(s.text for s in annotation.spans if s.grade == 0)),
                query_id=annotation.id,
                positive_id=span.id,
                source=SOURCE,
                kind=KIND,
            )
            for annotation in self.annotations
            for span in annotation.spans
            if span.grade > 0
        ]

    def collection(self) -> Collection:
        """The documents, and each question's highest grade in each document, as a collection.

        Judgements name whole documents, as everywhere in this project. Spans, levels, answers and
        provenance stay with the first document of each question (metadata ``aiano``), from where
        :func:`stm_training.data.aiano.from_collection` takes them back. Questions without a relevant span
        are no queries, but are kept there too.
        """
        kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
        first = next(iter(self.documents), "")
        queries: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        for place, annotation in enumerate(self.annotations):
            row = {"id": annotation.id, "place": place, "row": annotation_row(annotation)}
            if levels := _levels(annotation):
                row["levels"] = levels
            kept[annotation.spans[0].document_id if annotation.spans else first].append(row)
            grades: dict[str, int] = {}
            for span in annotation.spans:
                grades[span.document_id] = max(span.grade, grades.get(span.document_id, 0))
            if any(grades.values()):
                queries[annotation.id] = annotation.question
                qrels[annotation.id] = grades
        corpus = {
            name: with_metadata(passage, {**passage.metadata, METADATA_KEY: kept[name]})
            if name in kept
            else passage
            for name, passage in self.documents.items()
        }
        return Collection(self.name, corpus, queries, qrels, self.skipped)


def annotation_row(annotation: Annotation) -> dict[str, Any]:
    """The row as the documented layout has it; rows that were read come out as they went in."""
    passages = [span_row(span) for span in annotation.spans]
    return {"question": annotation.question, **annotation.row, "passages": passages}


def span_row(span: Span) -> dict[str, Any]:
    """A span's row; a new one gets a level by its grade."""
    if span.row:
        return dict(span.row)
    return {
        "document_id": span.document_id,
        "text": span.text,
        "span": {"start": span.start, "end": span.end},
        "level": _level(span.grade),
    }


def document_row(passage: Passage) -> dict[str, Any]:
    """A document's row as the documented layout has it."""
    row: dict[str, Any] = {"document_id": passage.id}
    metadata = {key: value for key, value in passage.metadata.items() if key != METADATA_KEY}
    row["subject_id"] = metadata.pop("subject_id", passage.id)
    if passage.title:
        row["title"] = passage.title
    return {**row, "text": passage.text, **metadata}


def level_of(item: Mapping[str, Any]) -> Any:
    """A passage's level as the annotator gave it: a name, a number, or ``None``."""
    return next((item[key] for key in LEVEL_KEYS if item.get(key) is not None), None)


def _levels(annotation: Annotation) -> dict[str, int]:
    """Grades of the levels that the annotation names; the caller may have settled them."""
    rows = ((level_of(span_row(span)), span.grade) for span in annotation.spans)
    return {level: grade for level, grade in rows if isinstance(level, str)}


def _level(grade: int) -> str:
    return {0: "distracting", 1: "relevant", 2: "highly relevant"}.get(grade, str(grade))


def with_metadata(passage: Passage, metadata: Mapping[str, Any]) -> Passage:
    """The same passage with other metadata."""
    return Passage(
        passage.id, passage.text, passage.title, metadata, passage.parent_id, passage.start, passage.end
    )
