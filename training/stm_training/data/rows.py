"""Strict reading of lines and JSON rows, and what happens to the bad ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import SkippedRow

OnError = Literal["raise", "skip"]

_SHOWN = 80
_BOM = b"\xef\xbb\xbf"

logger = logging.getLogger(__name__)


def shown(value: object) -> str:
    """A short, printable form of a value for a message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


class BadRows:
    """Raises at the first bad row, or collects all of them.

    Args:
        on_error: ``"raise"`` or ``"skip"``.
        skipped: A list that receives the skipped rows; a new one if ``None``.

    Raises:
        ConfigError: If ``on_error`` is neither.
    """

    def __init__(self, on_error: OnError = "raise", skipped: list[SkippedRow] | None = None) -> None:
        if on_error not in ("raise", "skip"):
            message = f"on_error is {on_error!r}; it must be 'raise' or 'skip'."
            raise ConfigError(message)
        self.on_error = on_error
        self.skipped: list[SkippedRow] = [] if skipped is None else skipped
        self._before = len(self.skipped)

    @property
    def new(self) -> tuple[SkippedRow, ...]:
        """The rows that this reader skipped."""
        return tuple(self.skipped[self._before :])

    def report(self, file: Path | str, line: int, cause: str, remedy: str) -> None:
        """Note a bad row.

        Raises:
            DataError: In ``"raise"`` mode, with file, line, cause and remedy.
        """
        row = SkippedRow(str(file), line, cause)
        if self.on_error == "raise":
            message = f"{row}. {remedy} Or leave bad rows out, each of them listed, with on_error: skip."
            raise DataError(message)
        self.skipped.append(row)

    def log(self) -> None:
        """Say how many rows were skipped (how many and where, never their text)."""
        if self.new:
            first = self.new[0]
            logger.warning("%d bad rows skipped, the first at %s:%d", len(self.new), first.file, first.line)


def decode(raw: bytes, file: Path, first_line: int, bad: BadRows) -> str | None:
    """Decode strict UTF-8 or report where it breaks.

    Args:
        raw: A line, or a whole file.
        file: For the message.
        first_line: Line number of the first byte.
        bad: Receives the problem.

    Returns:
        The text, or ``None`` if it was skipped.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        cause = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        bad.report(file, line, cause, "Convert the file, for instance: iconv -f latin1 -t utf-8 OLD > NEW.")
        return None


def read_lines(file: Path, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that is not blank; lines end at LF or CR LF only.

    Raises:
        DataError: If the file cannot be opened, or (in raise mode) is not UTF-8.
    """
    try:
        handle = file.open("rb")
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror}). Check the path and its permissions."
        raise DataError(message) from error
    with handle:
        for number, raw in enumerate(handle, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if not raw.strip():
                continue
            text = decode(raw, file, number, bad)
            if text is not None:
                yield number, text.rstrip("\r\n")


def read_json_rows(file: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of each line of a JSONL file; anything else is a bad row."""
    for number, text in read_lines(file, bad):
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            cause = f"broken JSON ({what}): {shown(text)}"
            bad.report(file, number, cause, "Each line must hold one whole JSON object.")
            continue
        if not isinstance(row, dict):
            cause = f"a JSON object is expected, found {type(row).__name__}: {shown(text)}"
            bad.report(file, number, cause, 'Write each row as {"_id": ..., "text": ...}.')
            continue
        yield number, row


def text_problem(value: object) -> str | None:
    """Why a value cannot serve as a text, or ``None`` if it can."""
    if value is None:
        return "is missing"
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not a string: {shown(value)}"
    if not value.strip():
        return f"is empty: {shown(value)}"
    return encoding_problem(value)


def encoding_problem(value: str) -> str | None:
    """Why a string cannot be written as UTF-8 (a lone surrogate), or ``None``."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
    return None


def as_id(value: object) -> str | None:
    """An id as a string (integers are common in published sets), or ``None`` if it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip() and encoding_problem(value) is None:
        return value
    return None
