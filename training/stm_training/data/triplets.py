"""sentence-transformers' triplets: ``anchor``, ``positive``, ``negative`` (or ``negative_1`` ...), both ways.

JSONL or Parquet, by the file's suffix. sentence-transformers takes every column of a data set as an input,
so only these columns are written, and every row has the same number of negatives.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from stm_retriever.errors import ConfigError, DataError, require
from stm_training.data.records import Pair, SkippedRow
from stm_training.data.rows import BadRows, OnError, read_json_rows, shown, text_problem
from stm_training.data.whole_files import whole_file

SOURCE = "triplets"
KIND = "labelled"
SUFFIXES = (".jsonl", ".parquet")

_ANCHORS = ("anchor", "query", "question")
_POSITIVES = ("positive", "answer")
_NEGATIVE = re.compile(r"negative(?:_(\d+))?\Z")
_ROWS_AT_ONCE = 10_000
_PURPOSE = "reading and writing Parquet"


def read_triplets(
    path: Path | str, on_error: OnError = "raise", *, skipped: list[SkippedRow] | None = None
) -> list[Pair]:
    """Read triplets as pairs; rows with the same anchor and positive become one pair with all negatives.

    Columns: ``anchor`` (or ``query``, ``question``), ``positive`` (or ``answer``), and any number of
    ``negative``, ``negative_1``, ...; a negative may be null.

    Args:
        path: A .jsonl or .parquet file.
        on_error: ``"raise"`` at the first bad row, or ``"skip"`` and list them.
        skipped: Receives the skipped rows; of a Parquet file, ``line`` counts rows from 1.

    Returns:
        The pairs, in the order of their first rows.

    Raises:
        DataError: For a missing or unreadable file, or a bad row in raise mode (another column is one: it
            would be lost silently).
        MissingExtraError: If pyarrow is not installed and the file is Parquet.
    """
    file = Path(path)
    bad = BadRows(on_error, skipped)
    merged: dict[tuple[str, str], dict[str, None]] = {}
    for line, row in _rows(file, bad):
        problem = _problem(row)
        if problem is not None:
            remedy = (
                "A row has the columns anchor, positive and, if any, negative or negative_1, negative_2, ..."
            )
            bad.report(file, line, problem, remedy)
            continue
        negatives = merged.setdefault((_first(row, _ANCHORS), _first(row, _POSITIVES)), {})
        negatives.update((row[name], None) for name in _negative_columns(row) if row[name] is not None)
    bad.log()
    return [
        Pair(query=anchor, positive=positive, negatives=tuple(negatives), source=SOURCE, kind=KIND)
        for (anchor, positive), negatives in merged.items()
    ]


def write_triplets(
    path: Path | str, pairs: Sequence[Pair], *, negatives: int | None = None, one_per_row: bool = False
) -> int:
    """Write pairs as JSONL or Parquet.

    Args:
        path: Its suffix, .jsonl or .parquet, says the format.
        pairs: What to write; ids, source, kind and prompt have no column there.
        negatives: Negatives per row: 0 leaves them out; rows with fewer are left out, of those with more the
            first are taken. ``None``: as many as every pair has.
        one_per_row: A row ``anchor, positive, negative`` for each negative; pairs without one are left out.

    Returns:
        Rows written.

    Raises:
        ConfigError: For another suffix, a negative count, or if pairs differ in their negatives and neither
            ``negatives`` nor ``one_per_row`` says what to do.
        DataError: If no row is left.
        MissingExtraError: If pyarrow is not installed and the file is Parquet.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        message = f"{file} ends in {file.suffix!r}; triplets are written as {' or '.join(SUFFIXES)}."
        raise ConfigError(message)
    columns, rows = _table(pairs, negatives, one_per_row)
    first = next(rows, None)
    if first is None:
        message = f"No row is left for {file}: of {len(pairs)} pairs none has the negatives asked for."
        raise DataError(message)
    everything = _chain(first, rows)
    with whole_file(file) as partial:
        if file.suffix == ".parquet":
            return _write_parquet(partial, columns, everything)
        return _write_jsonl(partial, columns, everything)


def columns_of(path: Path) -> list[str]:
    """The columns of a Parquet file, or the keys of the first row of a JSONL file."""
    if path.suffix == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    first = next(read_json_rows(path, BadRows()), None)
    return [] if first is None else list(first[1])


def is_triplets(columns: Iterable[str]) -> bool:
    """Whether the columns are those of triplets, and not of a pairs file."""
    names = set(columns)
    return "negatives" not in names and _column_problem(names) is None


def _rows(file: Path, bad: BadRows) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.suffix != ".parquet":
        yield from read_json_rows(file, bad)
        return
    number = 0
    for batch in _open_parquet(file).iter_batches(batch_size=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _open_parquet(file: Path) -> Any:
    parquet = require("pyarrow.parquet", extra="train", purpose=_PURPOSE)
    arrow = require("pyarrow", extra="train", purpose=_PURPOSE)
    try:
        return parquet.ParquetFile(file)
    except (OSError, arrow.ArrowException) as error:
        message = f"{file}: cannot be read as Parquet ({error}). Check the path, or export it again."
        raise DataError(message) from error


def _problem(row: Mapping[str, Any]) -> str | None:
    if problem := _column_problem(set(row)):
        return problem
    for name in (*_ANCHORS, *_POSITIVES):
        if name in row and (problem := text_problem(row[name])):
            return f"{name!r} {problem}"
    for name in _negative_columns(row):
        if row[name] is not None and (problem := text_problem(row[name])):
            return f"{name!r} {problem}"
    return None


def _column_problem(names: set[str]) -> str | None:
    """What is wrong with the columns, or ``None``."""
    for what, allowed in (("anchor", _ANCHORS), ("positive", _POSITIVES)):
        there = [name for name in allowed if name in names]
        if len(there) != 1:
            found = " and ".join(map(repr, there)) if there else "none"
            return f"one column {what!r} is needed (or {', '.join(map(repr, allowed[1:]))}), found {found}"
    unknown = sorted(n for n in names if n not in (*_ANCHORS, *_POSITIVES) and not _NEGATIVE.match(n))
    return f"unknown columns {', '.join(map(shown, unknown))}" if unknown else None


def _negative_columns(row: Mapping[str, Any]) -> list[str]:
    """Names of the negative columns by their numbers."""
    found = [(int(match.group(1) or 0), name) for name in row if (match := _NEGATIVE.match(name))]
    return [name for _, name in sorted(found)]


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return str(next(row[name] for name in names if name in row))


def _table(
    pairs: Sequence[Pair], negatives: int | None, one_per_row: bool
) -> tuple[list[str], Iterator[tuple[str, ...]]]:
    """Column names, and the rows."""
    if one_per_row:
        if negatives is not None:
            message = "negatives and one_per_row exclude each other: give one of them."
            raise ConfigError(message)
        rows = ((p.query, p.positive, negative) for p in pairs for negative in p.negatives)
        return ["anchor", "positive", "negative"], rows
    count = _common_count(pairs) if negatives is None else negatives
    if count < 0:
        message = f"negatives is {count}; give 0 (leave them out) or more."
        raise ConfigError(message)
    names = ["negative"] if count == 1 else [f"negative_{n}" for n in range(1, count + 1)]
    wide = ((p.query, p.positive, *p.negatives[:count]) for p in pairs if len(p.negatives) >= count)
    return ["anchor", "positive", *names], wide


def _common_count(pairs: Sequence[Pair]) -> int:
    counts = Counter(len(pair.negatives) for pair in pairs)
    if len(counts) > 1:
        found = ", ".join(f"{n} pairs with {count}" for count, n in sorted(counts.items()))
        message = (
            f"The pairs differ in their number of negatives ({found}), and rows of triplets must not. Say "
            "how many to keep: --negatives N (rows with fewer are left out; 0: none), or --one-per-row."
        )
        raise ConfigError(message)
    return next(iter(counts), 0)


def _chain(first: tuple[str, ...], rest: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    yield first
    yield from rest


def _write_jsonl(file: Path, columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> int:
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as handle:
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is the result
            handle.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
    return count


def _write_parquet(file: Path, columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> int:
    arrow = require("pyarrow", extra="train", purpose=_PURPOSE)
    parquet = require("pyarrow.parquet", extra="train", purpose=_PURPOSE)
    schema = arrow.schema([(name, arrow.string()) for name in columns])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while block := list(islice(rows, _ROWS_AT_ONCE)):
            columns_of_block = [
                arrow.array(list(values), arrow.string()) for values in zip(*block, strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(columns_of_block, schema=schema))
            count += len(block)
    return count
