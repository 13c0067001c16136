"""Runs and judgements as TREC files, which every evaluation tool reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from stm_retriever.errors import DataError
from stm_training.evaluate.metrics import Qrels, Run, first_documents

_UNSAFE = re.compile(r"[\s%]")


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run: ``query Q0 document rank score tag`` per line, ranks from 1 in trec_eval's order.

    Scores keep all their digits, so that the file gives the very figures that the run gave. White space and
    ``%`` in ids become ``%20`` and the like, as the format has no quotes.

    Args:
        path: The file; its folder is made where missing.
        run: Query id -> (document id, score) pairs in any order.
        tag: Name of the system.
    """
    lines = []
    for query, results in run.items():
        scores = dict(results)
        for rank, document in enumerate(first_documents(query, results), start=1):
            lines.append(
                f"{_safe(query)} Q0 {_safe(document)} {rank} {float(scores[document])!r} {_safe(tag)}\n"
            )
    _write(path, lines)


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write judgements: ``query 0 document grade`` per line; ids as in :func:`write_run`."""
    _write(
        path,
        [
            f"{_safe(query)} 0 {_safe(document)} {grade}\n"
            for query, judged in qrels.items()
            for document, grade in judged.items()
        ],
    )


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run that :func:`write_run` or any other tool wrote; the ranks in it are not looked at.

    Raises:
        DataError: If the file cannot be read, a line is no run line, or the file is empty.
    """
    run: dict[str, list[tuple[str, float]]] = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise DataError(
                f"{path}:{number}: {len(fields)} fields; a TREC run has six: query Q0 document rank score "
                "tag."
            )
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise DataError(f"{path}:{number}: the score is {fields[4]!r}, which is no number.")
        run.setdefault(unquote(fields[0]), []).append((unquote(fields[2]), score))
    if not run:
        raise DataError(f"{path} holds no results. A TREC run has lines: query Q0 document rank score tag.")
    return run


def file_names(models: Mapping[str, object]) -> dict[str, str]:
    """A file name of its own for every model, whatever is in its name."""
    found: dict[str, str] = {}
    for model in models:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")[-80:].strip("-.") or "model"
        name, number = stem, 2
        while name.lower() in (taken.lower() for taken in found.values()):
            name, number = f"{stem}-{number}", number + 1
        found[model] = name
    return found


def _safe(text: str) -> str:
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match.group().encode()), text)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a TREC run: {type(error).__name__}: {error}.") from error
