"""Reading collections, corpora and pairs, with every bad row named by file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.records import Collection, Pair, Passage, SkippedRow, scores_problem
from stm_training.data.rows import (
    BadRows,
    OnError,
    as_id,
    encoding_problem,
    read_json_rows,
    read_lines,
    shown,
    text_problem,
)
from stm_training.data.text_files import TEXT_SUFFIXES, read_text_file
from stm_training.data.writing import write_beir, write_pairs, write_passages

__all__ = [
    "available_splits",
    "read_beir",
    "read_corpus",
    "read_pairs",
    "write_beir",
    "write_pairs",
    "write_passages",
]

_OWN_KEYS = frozenset({"_id", "id", "title", "text", "metadata", "parent_id", "start", "end"})
PAIR_KEYS = frozenset(
    {"query", "positive", "negatives", "query_id", "positive_id", "source", "kind", "prompt", "scores"}
)


def read_beir(
    folder: Path | str,
    split: str,
    on_error: OnError = "raise",
    *,
    skipped: list[SkippedRow] | None = None,
    corpus: dict[str, Passage] | None = None,
    allow_title_only: bool = False,
) -> Collection:
    """Read one split of a BEIR folder (``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``).

    Args:
        folder: The collection's folder; its name becomes the collection's name.
        split: For instance ``"train"`` or ``"test"``.
        on_error: ``"raise"`` at the first bad row, or ``"skip"`` and list them in ``Collection.skipped``.
        skipped: Also receives the skipped rows.
        corpus: The corpus, if it was read already (another split of the same folder).
        allow_title_only: Accept passages with a title and no text (some published sets have them).

    Returns:
        The split: the whole corpus, and the queries that the split judges.

    Raises:
        DataError: For a missing file or split, or a bad row in raise mode.
    """
    folder = Path(folder)
    bad = BadRows(on_error, skipped)
    _must_be_collection(folder, split)
    if corpus is None:
        corpus = {p.id: p for p in _read_passages(folder / "corpus.jsonl", bad, {}, allow_title_only)}
    texts = _read_queries(folder / "queries.jsonl", bad)
    qrels = _read_qrels(folder / "qrels" / f"{split}.tsv", corpus, texts, bad)
    bad.log()
    queries = {query_id: texts[query_id] for query_id in qrels}
    return Collection(folder.name, corpus, queries, qrels, bad.new)


def available_splits(folder: Path | str) -> list[str]:
    """Names of the splits that a BEIR folder has judgements for, sorted."""
    return sorted(path.stem for path in (Path(folder) / "qrels").glob("*.tsv"))


def read_corpus(
    path: Path | str,
    on_error: OnError = "raise",
    *,
    skipped: list[SkippedRow] | None = None,
    allow_title_only: bool = False,
) -> list[Passage]:
    """Read documents as people have them.

    A BEIR folder (its ``corpus.jsonl``), a JSONL file (``_id`` or ``id``, ``text``, and optionally ``title``
    and ``metadata``; other keys become metadata), one .txt/.md/.html file, or a folder of such files, read
    recursively in the order of their paths (a text file's id is its path inside the folder). Files of other
    kinds in a folder are listed in ``skipped`` and counted in a warning; they are not an error.

    Args:
        path: File or folder.
        on_error: ``"raise"`` at the first bad row or file, or ``"skip"`` and list them in ``skipped``.
        skipped: Receives the skipped rows and files.
        allow_title_only: Accept rows with a title and no text.

    Returns:
        The passages, in file order; ids are unique.

    Raises:
        DataError: For a path that is not there, a bad row in raise mode, or if nothing readable is found.
    """
    path = Path(path)
    bad = BadRows(on_error, skipped)
    seen: dict[str, str] = {}
    passages: list[Passage] = []
    for file, name in _corpus_files(path, bad):
        if file.suffix.lower() == ".jsonl":
            passages.extend(_read_passages(file, bad, seen, allow_title_only))
            continue
        passage = read_text_file(file, name, bad)
        if passage is not None and _is_new(passage.id, file, 1, bad, seen):
            passages.append(passage)
    bad.log()
    if not passages:
        message = (
            f"{path}: no document could be read ({len(bad.new)} rows or files skipped). Readable are "
            f".jsonl, {', '.join(sorted(TEXT_SUFFIXES))}, and BEIR folders."
        )
        raise DataError(message)
    return passages


def read_pairs(
    path: Path | str, on_error: OnError = "raise", *, skipped: list[SkippedRow] | None = None
) -> list[Pair]:
    """Read training pairs from JSONL rows ``{query, positive, negatives, query_id?, ...}``.

    Raises:
        DataError: For a missing file, or a bad row in raise mode (an unknown key is one: a misspelt
            ``negatives`` would otherwise be lost silently).
    """
    file = Path(path)
    bad = BadRows(on_error, skipped)
    pairs = []
    for line, row in read_json_rows(file, bad):
        cause = pair_problem(row)
        if cause is None:
            pairs.append(as_pair(row))
        else:
            keys = ", ".join(sorted(PAIR_KEYS))
            bad.report(file, line, cause, f"A pair has the keys {keys}; query and positive are needed.")
    bad.log()
    return pairs


def _must_be_collection(folder: Path, split: str) -> None:
    for name in ("corpus.jsonl", "queries.jsonl"):
        if not (folder / name).is_file():
            message = (
                f"{folder / name} is not there. A collection is a BEIR folder: corpus.jsonl, queries.jsonl "
                "and qrels/<split>.tsv. For documents without queries, name the folder as a corpus."
            )
            raise DataError(message)
    if not (folder / "qrels" / f"{split}.tsv").is_file():
        there = ", ".join(available_splits(folder)) or "none"
        message = f"{folder / 'qrels'}: no split {split!r}; those there: {there}. Name one of them."
        raise DataError(message)


def _corpus_files(path: Path, bad: BadRows) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, path.name
        return
    if not path.is_dir():
        message = f"{path} is not there. Name a folder of documents, a JSONL file, or a BEIR folder."
        raise DataError(message)
    if (path / "corpus.jsonl").is_file():
        yield path / "corpus.jsonl", "corpus.jsonl"
        return
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if not file.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        if file.suffix.lower() == ".jsonl" or file.suffix.lower() in TEXT_SUFFIXES:
            yield file, inside.as_posix()
        else:  # listed, never an error: a folder of documents often holds an image or a spreadsheet too
            bad.skipped.append(SkippedRow(str(file), 0, f"files of kind {file.suffix!r} are not read"))


def _is_new(id_: str, file: Path, line: int, bad: BadRows, seen: dict[str, str]) -> bool:
    first = seen.setdefault(id_, f"{file}:{line}")
    if first != f"{file}:{line}":
        cause = f"duplicate id {shown(id_)}, first used at {first}"
        bad.report(file, line, cause, "Ids must be unique within a corpus: rename one or delete it.")
        return False
    return True


def _read_passages(
    file: Path, bad: BadRows, seen: dict[str, str], allow_title_only: bool
) -> Iterator[Passage]:
    for line, row in read_json_rows(file, bad):
        cause = _passage_problem(row, allow_title_only)
        if cause is not None:
            remedy = 'A row is {"_id": "unique", "title": "may be empty", "text": "not empty"}.'
            bad.report(file, line, cause, remedy)
            continue
        passage = _passage(row)
        if _is_new(passage.id, file, line, bad, seen):
            yield passage


def _passage_problem(row: Mapping[str, Any], allow_title_only: bool) -> str | None:
    id_ = row.get("_id", row.get("id"))
    if as_id(id_) is None:
        return f"'_id' is {'missing' if id_ is None else 'not a usable id: ' + shown(id_)}"
    title = row.get("title")
    if title is not None and not isinstance(title, str):
        return f"'title' of {shown(id_)} is {type(title).__name__}, not a string: {shown(title)}"
    if title and (problem := encoding_problem(title)):
        return f"'title' of {shown(id_)} {problem}"
    text = row.get("text") or ""
    title_only = allow_title_only and bool(title and title.strip()) and isinstance(text, str)
    if (problem := text_problem(text)) and not (title_only and not text.strip()):
        return f"'text' of {shown(id_)} {problem}"
    if not isinstance(row.get("metadata") or {}, dict):
        return f"'metadata' of {shown(id_)} is not an object: {shown(row['metadata'])}"
    return _piece_problem(row)


def _piece_problem(row: Mapping[str, Any]) -> str | None:
    if row.get("parent_id") is not None and as_id(row["parent_id"]) is None:
        return f"'parent_id' is not a usable id: {shown(row['parent_id'])}"
    for key in ("start", "end"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            return f"{key!r} is not a character offset: {shown(value)}"
    return None


def _passage(row: Mapping[str, Any]) -> Passage:
    metadata = dict(row.get("metadata") or {})
    metadata.update({key: value for key, value in row.items() if key not in _OWN_KEYS})
    return Passage(
        id=as_id(row.get("_id", row.get("id"))) or "",
        text=row.get("text") or "",
        title=row.get("title") or "",
        metadata=metadata,
        parent_id=as_id(row.get("parent_id")),
        start=row.get("start"),
        end=row.get("end"),
    )


def _read_queries(file: Path, bad: BadRows) -> dict[str, str]:
    queries: dict[str, str] = {}
    seen: dict[str, str] = {}
    for line, row in read_json_rows(file, bad):
        given = row.get("_id", row.get("id"))
        id_ = as_id(given)
        if id_ is None:
            cause = f"'_id' is {'missing' if given is None else 'not a usable id: ' + shown(given)}"
        elif problem := text_problem(row.get("text")):
            cause = f"'text' of query {shown(id_)} {problem}"
        elif _is_new(id_, file, line, bad, seen):
            queries[id_] = row["text"]
            continue
        else:
            continue
        bad.report(file, line, cause, 'A query is {"_id": "unique", "text": "not empty"}.')
    return queries


def _read_qrels(
    file: Path, corpus: Mapping[str, Passage], queries: Mapping[str, str], bad: BadRows
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line, text in read_lines(file, bad):
        fields = text.split("\t")
        if line == 1 and len(fields) == 3 and not _is_grade(fields[2]):
            continue  # the header that BEIR files have
        cause = _qrel_problem(fields, corpus, queries, qrels)
        if cause is None:
            qrels.setdefault(fields[0], {})[fields[1]] = int(fields[2])
        else:
            remedy = "A judgement is query-id<TAB>corpus-id<TAB>integer grade, of rows that exist."
            bad.report(file, line, cause, remedy)
    if not qrels:
        message = f"{file}: no usable judgement, so nothing can be evaluated or trained on. Fill it."
        raise DataError(message)
    return qrels


def _is_grade(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _qrel_problem(
    fields: list[str],
    corpus: Mapping[str, Passage],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
) -> str | None:
    if len(fields) != 3:
        return f"{len(fields)} tab-separated fields, expected 3: {shown(' | '.join(fields))}"
    query_id, passage_id, grade = fields
    if not _is_grade(grade):
        return f"the grade {shown(grade)} is not an integer"
    if query_id not in queries:
        return f"unknown query {shown(query_id)}: queries.jsonl has no such id"
    if passage_id not in corpus:
        return f"unknown document {shown(passage_id)}: corpus.jsonl has no such id"
    before = qrels.get(query_id, {}).get(passage_id, int(grade))
    if before != int(grade):
        return f"contradicting grades {before} and {grade} for {shown(query_id)} and {shown(passage_id)}"
    return None


def pair_problem(row: Mapping[str, Any]) -> str | None:
    if unknown := sorted(set(row) - PAIR_KEYS):
        return f"unknown keys {', '.join(map(repr, unknown))}"
    for key in ("query", "positive"):
        if problem := text_problem(row.get(key)):
            return f"{key!r} {problem}"
    return _negatives_problem(row.get("negatives") or []) or _provenance_problem(row) or _scores_problem(row)


def _negatives_problem(negatives: object) -> str | None:
    if not isinstance(negatives, list):
        return f"'negatives' is {type(negatives).__name__}, not a list: {shown(negatives)}"
    for index, negative in enumerate(negatives):
        if problem := text_problem(negative):
            return f"'negatives[{index}]' {problem}"
    return None


def _provenance_problem(row: Mapping[str, Any]) -> str | None:
    for key in ("query_id", "positive_id"):
        if row.get(key) is not None and as_id(row[key]) is None:
            return f"{key!r} is not a usable id: {shown(row[key])}"
    for key in ("source", "kind", "prompt"):
        if not isinstance(row.get(key) or "", str):
            return f"{key!r} is not a string: {shown(row[key])}"
    return None


def _scores_problem(row: Mapping[str, Any]) -> str | None:
    scores = row.get("scores") or []
    if not isinstance(scores, list):
        return f"'scores' is {type(scores).__name__}, not a list: {shown(scores)}"
    problem = scores_problem(scores, len(row.get("negatives") or [])) if scores else None
    return problem and f"the row {problem}"


def as_pair(row: Mapping[str, Any]) -> Pair:
    return Pair(
        query=row["query"],
        positive=row["positive"],
        negatives=tuple(row.get("negatives") or ()),
        query_id=as_id(row.get("query_id")),
        positive_id=as_id(row.get("positive_id")),
        source=row.get("source") or "",
        kind=row.get("kind") or "",
        prompt=row.get("prompt"),
        scores=tuple(map(float, row.get("scores") or ())),
    )
