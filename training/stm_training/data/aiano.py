"""AIANO's annotations (arXiv 2602.04579): questions with highlighted, graded spans of documents, both ways.

Read are the two layouts that the tool knows: the documented dataset, ``{"annotations": [{"question",
"answer", "passages": [{"document_id", "text", "span": {"start", "end"}}], "metadata"}]}`` with
``{"documents": [{"document_id", "subject_id", "text", ...}]}``, and the "structured annotation dataset"
that its export button writes (``entries`` with ``highlights`` and ``aianoBlocks``; documents inside).
Written is the documented one. Nothing that a row holds is lost on the way.

The tool runs in a browser, so its offsets count UTF-16 units; ours count characters. The two differ behind
an emoji or another character beyond U+FFFF; each span's text decides which was meant.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.aiano_file import ROOT, JsonFile, read_json_file
from stm_training.data.aiano_records import (
    METADATA_KEY,
    AianoDataset,
    Annotation,
    Span,
    annotation_row,
    document_row,
    with_metadata,
)
from stm_training.data.aiano_rows import (
    BadRow,
    Reading,
    documented_row,
    parse_annotation,
    parse_document,
    restored,
    unique_id,
)
from stm_training.data.records import Collection, Pair, Passage, SkippedRow
from stm_training.data.rows import BadRows, OnError, shown
from stm_training.data.whole_files import write_whole_text

__all__ = ["AianoDataset", "Annotation", "Span", "from_collection", "read_aiano", "write_aiano"]

ANNOTATIONS, DOCUMENTS = "annotations.json", "documents.json"
_ANNOTATION_LISTS = ("annotations", "entries")


def read_aiano(
    path: Path | str,
    documents: Path | str | None = None,
    on_error: OnError = "raise",
    *,
    skipped: list[SkippedRow] | None = None,
    levels: Mapping[str, int] | None = None,
    question_block: str | None = None,
    answer_block: str | None = None,
) -> AianoDataset:
    """Read AIANO's annotations and the documents that were annotated.

    Args:
        path: A JSON file of either layout, or a folder with annotations.json and documents.json.
        documents: JSON file of documents; ``None``: those inside ``path``, else documents.json beside it.
        on_error: ``"raise"`` at the first bad row, or ``"skip"`` and list them.
        skipped: Also receives the skipped rows.
        levels: Grades of relevance levels by name, before :data:`aiano_records.DEFAULT_GRADES`; 0 is a hard
            negative. A level without a known name is graded by its score, if it has one.
        question_block: Structured export only: the AIANO block that holds the question.
        answer_block: The one that holds the answer.

    Returns:
        Documents and annotations.

    Raises:
        DataError: For a missing or broken file, or a bad row in raise mode, with file, line and remedy.
    """
    path = Path(path)
    file = path / ANNOTATIONS if path.is_dir() else path
    bad = BadRows(on_error, skipped)
    content = read_json_file(file)
    name = next((key for key in _ANNOTATION_LISTS if key in content.lists), None)
    if name is None:
        keys = ", ".join([*content.lists, *content.values]) or "none"
        message = (
            f"{file} holds no list 'annotations' or 'entries' (its keys: {keys}), so it is no annotation "
            "export of AIANO. Name the exported data set; documents go to --documents (documents=)."
        )
        raise DataError(message)
    passages = _read_documents(file, content, None if documents is None else Path(documents), bad)
    grades = {level.strip().casefold(): grade for level, grade in (levels or {}).items()}
    reading = Reading(passages, grades, question_block, answer_block)
    annotations = list(_read_annotations(file, content.lists[name], name == "entries", reading, bad))
    bad.log()
    return AianoDataset(path.stem, passages, tuple(annotations), bad.new)


def _read_annotations(
    file: Path, rows: Sequence[tuple[int, Any]], structured: bool, reading: Reading, bad: BadRows
) -> Iterator[Annotation]:
    taken: set[str] = set()
    for number, (line, row) in enumerate(rows, start=1):
        try:
            documented = documented_row(row, reading) if structured else row
            annotation = parse_annotation(documented, f"q{number}", reading)
        except BadRow as problem:
            bad.report(file, line, problem.cause, problem.remedy)
            continue
        name = unique_id(annotation.id, taken)
        taken.add(name)
        yield Annotation(name, annotation.question, annotation.spans, annotation.row)


def _read_documents(file: Path, content: JsonFile, given: Path | None, bad: BadRows) -> dict[str, Passage]:
    """From the file that was named, else from inside the annotations, else from the file beside them."""
    if given is None and (inside := list(_inner_documents(content))):
        return _parse_documents(file, inside, bad, repeated=True)
    beside = file.with_name(DOCUMENTS) if given is None else given
    if given is None and not beside.is_file():
        message = (
            f"{file} holds no documents and {beside} is not there, so spans cannot be cut. Give the "
            "documents that were annotated: --documents FILE (documents=)."
        )
        raise DataError(message)
    lists = read_json_file(beside).lists
    rows = lists.get("documents", lists.get(ROOT))
    if rows is None:
        message = (
            f'{beside} holds neither a list nor {{"documents": [...]}}, so it is no documents file of AIANO.'
        )
        raise DataError(message)
    return _parse_documents(beside, rows, bad, repeated=False)


def _inner_documents(content: JsonFile) -> Iterator[tuple[int, Any]]:
    yield from content.lists.get("documents", ())
    for line, entry in content.lists.get("entries", ()):
        documents = entry.get("documents") if isinstance(entry, dict) else None
        yield from ((line, row) for row in (documents if isinstance(documents, list) else ()))


def _parse_documents(
    file: Path, rows: Iterable[tuple[int, Any]], bad: BadRows, *, repeated: bool
) -> dict[str, Passage]:
    """Documents by id; where entries carry their documents, the same one comes again and again."""
    found: dict[str, Passage] = {}
    for line, row in rows:
        try:
            passage = parse_document(row)
        except BadRow as problem:
            bad.report(file, line, problem.cause, problem.remedy)
            continue
        if passage.id in found and not (repeated and found[passage.id].text == passage.text):
            cause = f"duplicate document id {shown(passage.id)}"
            bad.report(file, line, cause, "Ids must be unique: rename one document or delete it.")
            continue
        found.setdefault(passage.id, passage)
    return found


def write_aiano(folder: Path | str, data: AianoDataset, *, for_upload: bool = False) -> None:
    """Write annotations.json and documents.json in the documented layout.

    Args:
        folder: Made if it is not there.
        data: Rows that were read from AIANO are written as they were.
        for_upload: Write documents.json as AIANO's upload takes it: a list with ``Document_Id`` and
            ``Subject_Id``. (The documented layout, ``{"documents": [...]}``, is not accepted there.)
    """
    folder = Path(folder)
    rows = [document_row(passage) for passage in data.documents.values()]
    upload = (
        [
            {"Document_Id": row.pop("document_id"), "Subject_Id": str(row.pop("subject_id")), **row}
            for row in rows
        ]
        if for_upload
        else None
    )
    write_whole_text(folder / DOCUMENTS, _json({"documents": rows} if upload is None else upload))
    annotations = [annotation_row(annotation) for annotation in data.annotations]
    write_whole_text(folder / ANNOTATIONS, _json({"annotations": annotations}))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def from_collection(collection: Collection, pairs: Sequence[Pair] = ()) -> AianoDataset:
    """What AIANO would hold of a collection.

    Questions that came from AIANO (see :meth:`AianoDataset.collection`) come back with their spans, levels,
    answers and metadata. Other queries get one span per judged document: the whole of it. A passage that was
    cut from a document of the corpus is a span of that document.

    Args:
        collection: Documents, queries and grades.
        pairs: Training pairs of the same queries; negatives whose text stands in no document become documents
            of their own, graded 0.

    Returns:
        The data set.
    """
    documents = _documents(collection)
    records = [record for p in collection.corpus.values() for record in p.metadata.get(METADATA_KEY, ())]
    kept = [annotation for _, annotation in sorted(restored(records, documents), key=lambda item: item[0])]
    known = {annotation.id for annotation in kept}
    added = [
        _unannotated(name, text, collection, documents)
        for name, text in collection.queries.items()
        if name not in known
    ]
    annotations = _with_negatives([*kept, *added], documents, pairs)
    return AianoDataset(collection.name, documents, tuple(annotations), collection.skipped)


def _unannotated(
    name: str, text: str, collection: Collection, documents: Mapping[str, Passage]
) -> Annotation:
    spans = _judged_spans(collection, documents, collection.qrels.get(name, {}))
    return Annotation(name, text, tuple(spans), {"id": name, "answer": "", "metadata": {}})


def _documents(collection: Collection) -> dict[str, Passage]:
    return {
        name: with_metadata(p, {key: v for key, v in p.metadata.items() if key != METADATA_KEY})
        for name, p in collection.corpus.items()
        if _parent(p, collection) is None
    }


def _parent(passage: Passage, collection: Collection) -> Passage | None:
    """The document in the corpus that a passage was cut from, if its offsets lead back to its text."""
    parent = collection.corpus.get(passage.parent_id or "")
    if parent is None or parent.id == passage.id or passage.start is None or passage.end is None:
        return None
    return parent if parent.text[passage.start : passage.end] == passage.text else None


def _judged_spans(
    collection: Collection, documents: Mapping[str, Passage], grades: Mapping[str, int]
) -> Iterable[Span]:
    for name, grade in grades.items():
        passage = collection.corpus[name]
        parent = _parent(passage, collection)
        if parent is not None and parent.id in documents:
            yield Span(parent.id, passage.start or 0, passage.end or 0, passage.text, max(grade, 0), {})
        else:
            yield Span(name, 0, len(passage.text), passage.text, max(grade, 0), {})


def _with_negatives(
    annotations: Sequence[Annotation], documents: dict[str, Passage], pairs: Sequence[Pair]
) -> list[Annotation]:
    """Give questions the hard negatives that only the pairs know; new texts become documents."""
    by_text = {passage.text: name for name, passage in documents.items()}
    by_content = {passage.content: name for name, passage in documents.items()}
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for pair in pairs:
        if pair.query_id is not None:
            wanted[pair.query_id].update(dict.fromkeys(pair.negatives))
    completed = []
    for annotation in annotations:
        there = {span.text for span in annotation.spans}
        there |= {documents[span.document_id].content for span in annotation.spans}
        spans = list(annotation.spans)
        for text in wanted.get(annotation.id, {}):
            if text in there:
                continue
            name = by_text.get(text) or by_content.get(text)
            if name is None:
                name = f"{annotation.id}/negative-{len(spans)}"
                documents[name] = Passage(name, text)
                by_text[text] = name
            whole = documents[name].text
            spans.append(Span(name, 0, len(whole), whole, 0, {}))
        completed.append(Annotation(annotation.id, annotation.question, tuple(spans), annotation.row))
    return completed
