"""Training pairs that stay on disk: a JSONL file, read row by row."""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, overload

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import DataError
from stm_training.data.reading import PAIR_KEYS, as_pair, pair_problem
from stm_training.data.records import Pair, SkippedRow
from stm_training.data.rows import BadRows, OnError, shown

_BOM = b"\xef\xbb\xbf"
_COUNT_BLOCK = 1 << 20  # bytes


class PairFile(Sequence[Pair]):
    """A JSONL file of pairs as a sequence that costs 8 bytes of memory per row.

    One pass over the file finds where its rows begin. A row is parsed and checked when it is asked for. The
    file may be read by several threads, and by processes forked from this one: each opens it for itself.

    Args:
        path: Rows as :func:`stm_training.data.reading.read_pairs` takes them; blank lines do not count.
        on_error: ``"raise"`` at a bad row when it is read, or ``"skip"``: the first pass parses every row
            and leaves out the bad ones, which are listed in ``skipped``.
        skipped: Receives the skipped rows.

    Raises:
        DataError: If the file cannot be read; later, with file and line, if a row that is asked for is bad.
    """

    def __init__(
        self, path: Path | str, on_error: OnError = "raise", *, skipped: list[SkippedRow] | None = None
    ) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._handle: BinaryIO | None = None
        self._process = os.getpid()
        bad = BadRows(on_error, skipped)
        with self._open() as handle:
            self._identity = _identity(handle)
            self._offsets = _row_offsets(handle, self.path, bad)
        bad.log()

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            message = f"row {index} of {self.path}, which has {len(self)} rows"
            raise IndexError(message)
        offset = int(self._offsets[index])
        with self._own_lock():
            if self._handle is None:
                self._handle = self._open_same()
            self._handle.seek(offset)
            raw = self._handle.readline()
        return self._parse(raw, offset)

    def __iter__(self) -> Iterator[Pair]:
        with self._open_same() as handle:
            for offset in self._offsets:
                handle.seek(offset)  # within the buffer, so this reads no byte twice
                yield self._parse(handle.readline(), int(offset))

    def check(self) -> None:
        """Parse every row once.

        Raises:
            DataError: At the first bad row, with file, line and cause.
        """
        for _ in self:
            pass

    def close(self) -> None:
        """Give the file back; a row that is asked for later opens it anew."""
        with self._own_lock():
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own_lock(self) -> threading.Lock:
        """This process's lock; a forked child shares neither the lock nor the handle, whose place moves."""
        if self._process != os.getpid():
            self._lock, self._handle, self._process = threading.Lock(), None, os.getpid()
        return self._lock

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            message = f"{self.path}: cannot be read ({error.strerror}). Check the path and its permissions."
            raise DataError(message) from error

    def _open_same(self) -> BinaryIO:
        handle = self._open()
        if (found := _identity(handle)) != self._identity:
            handle.close()
            message = (
                f"{self.path} was changed since it was opened ({self._identity[1]} bytes then, {found[1]} "
                "now), so its rows are no longer where they were. Start again, and leave the file alone."
            )
            raise DataError(message)
        return handle

    def _parse(self, raw: bytes, offset: int) -> Pair:
        result = _parse_pair(raw)
        if isinstance(result, Pair):
            return result
        message = f"{self.path}:{self._line(offset)}: {result}. {_remedy()}"
        raise DataError(message)

    def _line(self, offset: int) -> int:
        line, left = 1, offset
        with self._open() as handle:
            while left > 0 and (block := handle.read(min(left, _COUNT_BLOCK))):
                line += block.count(b"\n")
                left -= len(block)
        return line


def _identity(handle: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(handle.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def _row_offsets(handle: BinaryIO, path: Path, bad: BadRows) -> NDArray[np.int64]:
    """(n,) int64: where each row begins, in bytes; in skip mode only rows that are good."""
    offsets = array("q")
    offset = 0
    for line, raw in enumerate(handle, start=1):
        start, offset = offset, offset + len(raw)
        if line == 1 and raw.startswith(_BOM):
            start, raw = start + len(_BOM), raw[len(_BOM) :]
        if not raw.strip():
            continue
        if bad.on_error == "skip" and isinstance(cause := _parse_pair(raw), str):
            bad.report(path, line, cause, _remedy())
            continue
        offsets.append(start)
    return np.array(offsets, np.int64)


def _parse_pair(raw: bytes) -> Pair | str:
    """The pair of a line, or what is wrong with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte 0x{raw[error.start]:02x} of the row is not UTF-8"
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        return f"broken JSON ({what}): {shown(text.strip())}"
    if not isinstance(row, dict):
        return f"a JSON object is expected, found {type(row).__name__}: {shown(text.strip())}"
    return pair_problem(row) or as_pair(row)


def _remedy() -> str:
    return f"A pair has the keys {', '.join(sorted(PAIR_KEYS))}; query and positive are needed."
