"""Borders inside a text: headings, list items, paragraphs, sentences; no language is assumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(r"[^\n]*\n?")
_MARKED_HEADING = re.compile(r"\s{0,3}#{1,6}\s+\S")
_UNDERLINE = re.compile(r"\s{0,3}(=+|-{3,})\s*$")
_ITEM = re.compile(r"\s*([-*+•‣]|\d{1,3}[.)])\s+\S")
_HEADING_LENGTH = 80
_CLOSERS = "\"'”’»)]}）】」』"
# A full stop that needs a following space, or one of a script that needs none.
_END = re.compile(
    rf"(?P<spaced>[.!?…]+[{re.escape(_CLOSERS)}]*)(?=\s)"
    rf"|[。！？｡．؟۔।॥။።᙮᠃᠉]+[{re.escape(_CLOSERS)}]*"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|Fig|Figs|Eq|Ref|Refs|No|Nos|Vol|al|vs|cf|ca|approx|resp|"
    r"e\.g|i\.e|z\.B|d\.h|bzw|Nr|p\.ex|M|Mme|Sr|Sra)\.$"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, heading or list item: ``text[start:end]``, without white space around it."""

    start: int
    end: int
    heading: bool = False


def units_of(text: str) -> list[Unit]:
    """Cut a text into units that cover everything but white space.

    Headings are lines marked as in Markdown, underlined ones, and short lines without final punctuation
    between blank lines. A full stop ends a sentence before white space, unless a lower-case letter follows
    or it belongs to an initial or a common abbreviation; marks such as ``。`` end one anywhere.

    Args:
        text: Any text.

    Returns:
        The units, in order, never overlapping.
    """
    units: list[Unit] = []
    for start, end, heading in _blocks(text):
        if heading:
            units.extend(_trimmed(text, start, end, heading=True))
        else:
            for left, right in _sentences(text, start, end):
                units.extend(_trimmed(text, left, right))
    return units


def _trimmed(text: str, start: int, end: int, *, heading: bool = False) -> Iterator[Unit]:
    piece = text[start:end]
    body = piece.strip()
    if body:
        left = start + len(piece) - len(piece.lstrip())
        yield Unit(left, left + len(body), heading)


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Paragraphs, list items and headings as (start, end, is heading)."""
    lines = [match.span() for match in _LINE.finditer(text) if match.end() > match.start()]
    begin: int | None = None
    for number, (start, end) in enumerate(lines):
        line = text[start:end]
        heading = _is_heading(text, lines, number)
        underline = bool(_UNDERLINE.match(line)) and number > 0 and _is_heading(text, lines, number - 1)
        if begin is not None and (heading or underline or not line.strip() or _ITEM.match(line)):
            yield begin, start, False
            begin = None
        if heading or underline:
            yield start, end, True
        elif line.strip() and begin is None:
            begin = start
    if begin is not None:
        yield begin, len(text), False


def _is_heading(text: str, lines: list[tuple[int, int]], number: int) -> bool:
    line = text[slice(*lines[number])]
    if _MARKED_HEADING.match(line):
        return True
    body = line.strip()
    if not body or number + 1 >= len(lines) or len(body) > _HEADING_LENGTH or _ITEM.match(line):
        return False
    before = text[slice(*lines[number - 1])] if number else ""
    after = text[slice(*lines[number + 1])]
    if not any(character.isalpha() for character in body) or before.strip():
        return False
    if _UNDERLINE.match(after):
        return True
    if after.strip() or body[-1] in ".!?…,;。！？，；、؟।":
        return False
    # the last line of a text introduces nothing
    return bool(text[lines[number + 1][1] :].strip())


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    begin = start
    for match in _END.finditer(text, start, end):
        if match["spaced"] and not _ends_sentence(text, begin, match, end):
            continue
        yield begin, match.end()
        begin = match.end()
    if begin < end:
        yield begin, end


def _ends_sentence(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    follows = text[match.end() : min(end, match.end() + 8)].lstrip()
    if follows and follows[0].islower():
        return False
    tail = text[max(begin, match.end() - 12) : match.end()]
    return not _ABBREVIATION.search(tail)
