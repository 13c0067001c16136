"""Raw text one document at a time, from files of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.records import Passage, SkippedRow
from stm_training.data.rows import BadRows, OnError, as_id, encoding_problem, read_json_rows, shown
from stm_training.data.text_files import TEXT_SUFFIXES, read_text_file

_TEXT_KEYS = ("text", "abstract")


def stream_documents(
    path: Path | str, on_error: OnError = "raise", *, skipped: list[SkippedRow] | None = None
) -> Iterator[Passage]:
    """Read documents without keeping any of them.

    Args:
        path: A BEIR folder (its ``corpus.jsonl``), a JSONL file of ``{title, text}`` or ``{title, abstract}``
            rows (``_id`` or ``id`` where there is one), one .txt/.md/.html file, or a folder of such files.
        on_error: ``"raise"`` at the first bad row or file, or ``"skip"`` and list them in ``skipped``.
        skipped: Receives the skipped rows.

    Yields:
        Documents in file order; one without an id is called by its file and line.

    Raises:
        DataError: For a path that is not there, a bad row in raise mode, or where nothing can be read.
    """
    path = Path(path)
    bad = BadRows(on_error, skipped)
    found = False
    for file, name in _files(path):
        if file.suffix.lower() == ".jsonl":
            documents = _rows(file, name, bad)
        else:
            passage = read_text_file(file, name, bad)
            documents = iter(() if passage is None else (passage,))
        for document in documents:
            found = True
            yield document
    bad.log()
    if not found:
        message = (
            f"{path}: no document could be read ({len(bad.new)} rows or files skipped). Readable are "
            f".jsonl, {', '.join(sorted(TEXT_SUFFIXES))}, and BEIR folders."
        )
        raise DataError(message)


def whole_documents(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Put the pieces of split documents together again; pieces of one document follow each other.

    Yields:
        Documents under their own ids; what two pieces both hold is there once.
    """
    for _, group in groupby(passages, key=lambda passage: passage.parent_id or passage.id):
        pieces = list(group)
        if pieces[0].parent_id is None:
            yield from pieces
            continue
        text, end = "", 0
        for piece in sorted(pieces, key=lambda piece: piece.start or 0):
            overlap = max(0, end - piece.start) if piece.start is not None else 0
            new = piece.text[overlap:]
            text = text + new if overlap or not text else f"{text}\n\n{new}"
            end = max(end, piece.end or 0)
        yield replace(pieces[0], id=pieces[0].parent_id, parent_id=None, start=None, end=None, text=text)


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.exists():
        message = f"{path} is not there. Name a folder of documents, a JSONL file, or a BEIR folder."
        raise DataError(message)
    if path.is_file():
        yield path, path.name
        return
    if (path / "corpus.jsonl").is_file():
        yield path / "corpus.jsonl", "corpus.jsonl"
        return
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not hidden and file.suffix.lower() in TEXT_SUFFIXES | {".jsonl"}:
            yield file, inside.as_posix()


def _rows(file: Path, name: str, bad: BadRows) -> Iterator[Passage]:
    for line, row in read_json_rows(file, bad):
        title, text = row.get("title") or "", _text(row)
        cause = _problem(title, text)
        if cause is not None:
            remedy = 'A row is {"title": "may be empty", "text": "not empty"}, or has an "abstract" instead.'
            bad.report(file, line, cause, remedy)
            continue
        yield Passage(id=as_id(row.get("_id", row.get("id"))) or f"{name}:{line}", text=text, title=title)


def _text(row: Mapping[str, Any]) -> Any:
    return next((row[key] for key in _TEXT_KEYS if row.get(key)), "")


def _problem(title: Any, text: Any) -> str | None:
    for key, value in (("title", title), ("text", text)):
        if not isinstance(value, str):
            return f"{key!r} is {type(value).__name__}, not a string: {shown(value)}"
        if problem := encoding_problem(value):
            return f"{key!r} {problem}"
    return None if title.strip() or text.strip() else "neither a title nor a text"
