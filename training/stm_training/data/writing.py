"""Writing pairs, passages and collections; each file appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stm_training.data.records import Collection, Pair, Passage


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> int:
    """Write training pairs as JSONL; optional keys are left out where they hold nothing.

    Returns:
        The number of rows.
    """
    return _write_jsonl(Path(path), (_pair_row(pair) for pair in pairs))


def write_passages(path: Path | str, passages: Iterable[Passage]) -> int:
    """Write passages as JSONL rows that :func:`stm_training.data.reading.read_corpus` reads back.

    Returns:
        The number of rows.
    """
    return _write_jsonl(Path(path), (_passage_row(passage) for passage in passages))


def write_beir(folder: Path | str, collection: Collection, split: str) -> None:
    """Write a collection as a BEIR folder with one split."""
    folder = Path(folder)
    write_passages(folder / "corpus.jsonl", collection.corpus.values())
    _write_jsonl(folder / "queries.jsonl", ({"_id": i, "text": t} for i, t in collection.queries.items()))
    lines = ["query-id\tcorpus-id\tscore"]
    for query_id, grades in collection.qrels.items():
        lines.extend(f"{query_id}\t{passage_id}\t{grade}" for passage_id, grade in grades.items())
    _write_lines(folder / "qrels" / f"{split}.tsv", lines)


def _pair_row(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"query": pair.query, "positive": pair.positive, "negatives": list(pair.negatives)}
    for key in ("query_id", "positive_id", "source", "kind", "prompt"):
        value = getattr(pair, key)
        if value is not None and value != "":
            row[key] = value
    if pair.scores:
        row["scores"] = list(pair.scores)
    return row


def _passage_row(passage: Passage) -> dict[str, Any]:
    row: dict[str, Any] = {"_id": passage.id, "title": passage.title, "text": passage.text}
    if passage.metadata:
        row["metadata"] = dict(passage.metadata)
    for key in ("parent_id", "start", "end"):
        value = getattr(passage, key)
        if value is not None:
            row[key] = value
    return row


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    return _write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as handle:
            for count, line in enumerate(lines, start=1):  # noqa: B007 - the count is the result
                handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
