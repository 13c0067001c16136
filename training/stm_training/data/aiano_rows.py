"""Parsing AIANO's rows: documents, annotations of both layouts, levels and offsets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.aiano_records import DEFAULT_GRADES, Annotation, Span, level_of
from stm_training.data.records import Passage
from stm_training.data.rows import as_id, encoding_problem, shown, text_problem

_SCORE_KEYS = ("level_score", "annotationLevelId", "score")
_DOCUMENT_IDS = ("document_id", "Document_Id")
_SUBJECT_IDS = ("subject_id", "Subject_Id")
_QUESTION = re.compile(r"question|query", re.IGNORECASE)
_ANSWER = re.compile(r"answer", re.IGNORECASE)


class BadRow(Exception):
    """A row cannot be used: what was found and what to do, without file and line."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        documents: By id.
        grades: Of levels, by name in lower case; the caller's before the defaults.
        question_block: Name of the AIANO block that holds the question; ``None``: the one named so.
        answer_block: Name of the block that holds the answer; ``None``: the one named so, if any.
    """

    documents: Mapping[str, Passage]
    grades: Mapping[str, int] = field(default_factory=dict)
    question_block: str | None = None
    answer_block: str | None = None


def parse_document(row: object) -> Passage:
    """A document's row as a passage; whatever is not id, title or text becomes metadata.

    Raises:
        BadRow: If id or text is unusable.
    """
    remedy = 'A document is {"document_id": "unique", "subject_id": "...", "text": "not empty", ...}.'
    if not isinstance(row, dict):
        raise BadRow(f"a document must be an object, found {type(row).__name__}: {shown(row)}", remedy)
    given = next((row[key] for key in (*_DOCUMENT_IDS, "id") if key in row), None)
    name = as_id(given)
    if name is None:
        raise BadRow(
            f"'document_id' is {'missing' if given is None else 'no usable id: ' + shown(given)}", remedy
        )
    if problem := text_problem(row.get("text")):
        raise BadRow(f"'text' of document {shown(name)} {problem}", remedy)
    title = row.get("title")
    titled = isinstance(title, str) and encoding_problem(title) is None
    used = {*_DOCUMENT_IDS, *_SUBJECT_IDS, "text"} | ({"title"} if titled else set())
    if not any(key in row for key in _DOCUMENT_IDS):
        used.add("id")
    metadata = {key: value for key, value in row.items() if key not in used}
    subject = next((row[key] for key in _SUBJECT_IDS if key in row), None)
    if subject is not None:
        metadata["subject_id"] = subject
    return Passage(name, row["text"], title if titled and isinstance(title, str) else "", metadata)


def parse_annotation(row: object, name: str, reading: Reading) -> Annotation:
    """A row of the documented layout.

    Args:
        row: The row.
        name: The annotation's id, where the row has none.
        reading: Documents and levels.

    Raises:
        BadRow: Naming the path inside the row, the value and the remedy.
    """
    if not isinstance(row, dict):
        raise BadRow(f"an annotation must be an object, found {type(row).__name__}", _ANNOTATION)
    if problem := text_problem(row.get("question")):
        raise BadRow(f"'question' {problem}", _ANNOTATION)
    passages = row.get("passages")
    if passages is None:
        passages = []
    if not isinstance(passages, list):
        raise BadRow(f"'passages' is {type(passages).__name__}, not a list: {shown(passages)}", _ANNOTATION)
    spans = tuple(_span(item, f"passages[{place}]", reading) for place, item in enumerate(passages))
    rest = {key: value for key, value in row.items() if key not in ("question", "passages")}
    return Annotation(as_id(row.get("id")) or name, row["question"], spans, rest)


def documented_row(entry: object, reading: Reading) -> dict[str, Any]:
    """An entry of the tool's structured export in the documented layout; nothing of it is left out.

    Raises:
        BadRow: If the entry is no object, or no block can be taken for the question.
    """
    if not isinstance(entry, dict):
        raise BadRow(f"an entry must be an object, found {type(entry).__name__}: {shown(entry)}", _ENTRY)
    blocks = entry.get("aianoBlocks")
    if not isinstance(blocks, dict):
        raise BadRow(f"'aianoBlocks' is not an object: {shown(blocks)}", _ENTRY)
    question = _block(blocks, reading.question_block, _QUESTION)
    if question is None:
        cause = (
            f"none of the blocks {', '.join(map(shown, blocks)) or '(none)'} is known to hold the question"
        )
        raise BadRow(cause, "Name it: --question-block NAME (question_block=).")
    answer = _block(blocks, reading.answer_block, _ANSWER)
    highlights = entry.get("highlights")
    if not isinstance(highlights, list):
        raise BadRow(f"'highlights' is {type(highlights).__name__}, not a list: {shown(highlights)}", _ENTRY)
    taken = ("id", "aianoBlocks", "highlights", "documents", "metadata")
    provenance = {key: value for key, value in entry.items() if key not in taken}
    metadata = entry.get("metadata")
    inner = (
        dict(metadata) if isinstance(metadata, dict) else {} if metadata is None else {"metadata": metadata}
    )
    return {
        **({"id": entry["id"]} if entry.get("id") is not None else {}),
        "question": blocks[question],
        "answer": "" if answer is None else blocks[answer],
        "passages": [_documented_highlight(item) for item in highlights],
        "metadata": {**inner, "aiano_blocks": dict(blocks), **provenance},
    }


_ANNOTATION = (
    'An annotation is {"question": "not empty", "answer": "...", "passages": [{"document_id", "text", '
    '"span": {"start", "end"}}]}.'
)
_ENTRY = 'An entry of AIANO\'s export has "aianoBlocks" {name: value} and "highlights" [...].'
_SPAN = (
    'A passage is {"document_id": "of a document", "text": "what stands there", "span": {"start": 0, "end": '
    "9}}; its offsets count characters of the document's text."
)


def _block(blocks: Mapping[str, Any], named: str | None, pattern: re.Pattern[str]) -> str | None:
    """The block of the given name, or the only one whose name fits."""
    if named is not None:
        return named if named in blocks else None
    exact = [name for name in blocks if pattern.fullmatch(name.strip())]
    fitting = exact or [name for name in blocks if pattern.search(name)]
    return fitting[0] if len(fitting) == 1 else None


def _documented_highlight(highlight: object) -> object:
    """A highlight's offsets and document under the documented names; other keys stay."""
    if not isinstance(highlight, dict):
        return highlight
    rest = {k: v for k, v in highlight.items() if k not in ("documentId", "text", "start", "end", "document")}
    return {
        "document_id": highlight.get("documentId"),
        "text": highlight.get("text"),
        "span": {"start": highlight.get("start"), "end": highlight.get("end")},
        **rest,
    }


def _span(item: object, path: str, reading: Reading) -> Span:
    if not isinstance(item, dict):
        raise BadRow(f"'{path}' is {type(item).__name__}, not an object: {shown(item)}", _SPAN)
    name = as_id(item.get("document_id"))
    if name is None or name not in reading.documents:
        cause = f"'{path}.document_id' names no document: {shown(item.get('document_id'))}"
        raise BadRow(cause, "Give the documents that were annotated: --documents FILE (documents=).")
    offsets = item.get("span")
    start, end = _offset(offsets, "start", path), _offset(offsets, "end", path)
    document = reading.documents[name].text
    place = _place(document, start, end, item.get("text"))
    if place is None:
        cause = (
            f"'{path}': characters {start} to {end} of document {shown(name)} ({len(document)} characters) "
            f"are {shown(document[start:end])}, the annotation says {shown(item.get('text'))}"
        )
        raise BadRow(cause, "Was the document changed after it was annotated? Give the one that was.")
    grade = _grade(item, path, reading.grades)
    return Span(name, *place, document[slice(*place)], grade, item)


def _offset(offsets: object, key: str, path: str) -> int:
    value = offsets.get(key) if isinstance(offsets, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(f"'{path}.span.{key}' is not a character offset: {shown(value)}", _SPAN)
    return value


def _place(document: str, start: int, end: int, text: object) -> tuple[int, int] | None:
    """Character offsets of a span, or ``None`` if neither reading of its offsets gives its text."""
    readings = [(start, end)]
    if not document.isascii() and any(ord(character) > 0xFFFF for character in document[:end]):
        units = document.encode("utf-16-le")  # the browser's offsets first
        before, inside = units[: 2 * start], units[2 * start : 2 * end]
        first = len(before.decode("utf-16-le", "replace"))
        readings.insert(0, (first, first + len(inside.decode("utf-16-le", "replace"))))
    for place in readings:
        found = document[slice(*place)]
        if place[0] < place[1] <= len(document) and found.strip() and text in (None, found):
            return place
    return None


def _grade(item: Mapping[str, Any], path: str, grades: Mapping[str, int]) -> int:
    level = level_of(item)
    score = next((item[key] for key in _SCORE_KEYS if item.get(key) is not None), None)
    if isinstance(level, str):
        name = level.strip().casefold()
        for table in (grades, DEFAULT_GRADES):
            if name in table:
                return table[name]
        if name.isdecimal():
            return int(name)
        level = score
        if level is None:
            cause = f"'{path}' has the level {shown(name)}, whose grade is not known"
            raise BadRow(cause, "Say it: --level 'NAME=GRADE' (levels=), 0 for a hard negative.")
    value = score if level is None else level
    if value is None:
        return 1  # highlighted, without a level
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise BadRow(f"'{path}' has the level {shown(value)}, no whole number of 0 or more", _SPAN)
    return int(value)


def unique_id(wanted: str, taken: Mapping[str, Any] | set[str]) -> str:
    """The wanted id, or the first free one that begins with it."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name


def restored(records: Sequence[Any], documents: Mapping[str, Passage]) -> list[tuple[int, Annotation]]:
    """Annotations that :meth:`AianoDataset.collection` left with a document, with their places.

    Raises:
        DataError: If the records were changed so that they cannot be read.
    """
    found = []
    for record in records:
        try:
            # Grades were settled when the row was first read, and may rest on the caller's levels.
            grades = {name.casefold(): grade for name, grade in record.get("levels", {}).items()}
            annotation = parse_annotation(record["row"], record["id"], Reading(documents, grades))
            found.append((int(record["place"]), annotation))
        except (BadRow, KeyError, TypeError, ValueError, AttributeError) as error:
            message = (
                f"The metadata 'aiano' of a document no longer fits it ({error}): {shown(record)}. "
                "Convert AIANO's own files again, or delete 'aiano' from the metadata."
            )
            raise DataError(message) from error
    return found
