"""Reading one large JSON file piece by piece, so that each row of its lists has a line number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.rows import BadRows, decode, shown

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_BOM = b"\xef\xbb\xbf"

ROOT = ""
"""The name of the list in a file that is one list."""


@dataclass
class JsonFile:
    """A JSON document's lists, row by row, and its other values.

    Attributes:
        lists: Rows with their line numbers, by the key of the list; :data:`ROOT` where the file is a list.
        values: Everything else at the top level, by key.
    """

    lists: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def read_json_file(file: Path) -> JsonFile:
    """Read a JSON object or list, with the line number of each row of the top-level lists.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, is broken JSON, or is neither object nor list.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror}). Check the path and its permissions."
        raise DataError(message) from error
    text = decode(raw.removeprefix(_BOM), file, 1, BadRows())
    scanner = _Scanner(file, text or "")
    return scanner.document()


class _Scanner:
    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._text = text
        self._at = 0
        self._counted_to = 0
        self._line = 1

    def document(self) -> JsonFile:
        found = JsonFile()
        self._skip_space()
        if self._peek() == "[":
            found.lists[ROOT] = list(self._rows())
        elif self._peek() == "{":
            self._object(found)
        else:
            self._fail("a JSON object or list is expected", self._at)
        self._skip_space()
        if self._at != len(self._text):
            self._fail("text after the end", self._at)
        return found

    def _object(self, found: JsonFile) -> None:
        self._at += 1
        first = True
        while not self._closes("}", first):
            first = False
            key = self._value()
            if not isinstance(key, str):
                self._fail("a key must be a string", self._at)
            self._expect(":")
            self._skip_space()
            if self._peek() == "[":
                found.lists[key] = list(self._rows())
            else:
                found.values[key] = self._value()

    def _rows(self) -> Iterator[tuple[int, Any]]:
        self._at += 1
        first = True
        while not self._closes("]", first):
            first = False
            line = self._line_at(self._at)
            yield line, self._value()

    def _closes(self, bracket: str, first: bool) -> bool:
        """Whether the list or object ends here; else go on to its next member."""
        self._skip_space()
        if self._peek() == bracket:
            self._at += 1
            return True
        if not first:
            self._expect(",")
            self._skip_space()
        return False

    def _value(self) -> Any:
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._fail(error.msg, error.pos)
        except RecursionError:
            self._fail("nested too deeply", self._at)
        return value

    def _expect(self, character: str) -> None:
        self._skip_space()
        if self._peek() != character:
            self._fail(f"{character!r} is expected", self._at)
        self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _line_at(self, position: int) -> int:
        self._line += self._text.count("\n", self._counted_to, position)
        self._counted_to = position
        return self._line

    def _fail(self, what: str, position: int) -> None:
        line = self._text.count("\n", 0, position) + 1
        near = shown(self._text[max(0, position - 20) : position + 40])
        message = (
            f"{self._file}:{line}: broken JSON ({what}) near {near}. Mend the file or export it again; "
            "nothing of it was read."
        )
        raise DataError(message)
