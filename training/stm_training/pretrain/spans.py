"""Words, bodies and passages of a document as stretches of its text; no language is assumed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from stm_training.data.sentences import Unit, units_of

Span = tuple[int, int]

# Scripts that put no spaces between words: each character counts as a word (Thai, Lao, Burmese, Khmer, kana,
# Han with its extensions).
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_RUN = re.compile(r"\S+")
_MARKS = "#*_=- \t\r\n"
_BEHIND_TITLE = re.compile(r"[*_#]*(?:[.:?!]|[ \t]+[-\u2013\u2014]|[ \t]*(?:\n|$))")


def word_spans(text: str) -> list[Span]:
    """Start and end of each word, in order."""
    return [match.span() for match in _WORD.finditer(text)]


def body_of(title: str, text: str) -> str:
    """The text without a first line or sentence that only repeats the title.

    Args:
        title: May be empty.
        text: The document's text.

    Returns:
        What follows the title, or the whole text; stripped.
    """
    body = text.strip()
    words = title.casefold().split()
    start = body.lstrip(_MARKS)
    found = list(islice(_RUN.finditer(start), len(words)))
    if not words or len(found) < len(words):
        return body
    *before, last = (match[0].casefold() for match in found)
    if before != words[:-1] or not last.startswith(words[-1]):
        return body
    behind = _BEHIND_TITLE.match(start, found[-1].start() + len(words[-1]))
    return body if behind is None else start[behind.end() :].lstrip(_MARKS)


def first_words(text: str, words: Sequence[Span], most: int) -> str:
    """The text's beginning: at most ``most`` words, up to a sentence's end where that leaves half of them."""
    if len(words) <= most:
        return text
    limit = words[most - 1][1]
    half = words[most // 2][0]
    ends = [unit.end for unit in units_of(text[:limit]) if half < unit.end < limit]
    return text[: ends[-1] if ends else limit]


def passages_of(text: str, fewest: int, most: int) -> list[str]:
    """Cut a text into passages that follow each other: sections, paragraphs, or sentences of a long one.

    Args:
        text: A document's body.
        fewest: A section or paragraph with fewer words goes together with the next one.
        most: A passage ends before the sentence with which it would have more words; a last piece of fewer
            than ``fewest`` words is left out.

    Returns:
        The passages, in order, not overlapping, each of ``fewest`` to ``most`` words.
    """
    passages: list[Span] = []
    start = end = count = 0
    for unit_start, unit_end, words, border in _pieces(text, most):
        if count and (count + words > most or (border and count >= fewest)):
            if count >= fewest:
                passages.append((start, end))
            count = 0
        if count == 0:
            start = unit_start
        end, count = unit_end, count + words
    if count >= fewest:
        passages.append((start, end))
    return [text[left:right] for left, right in passages]


def _pieces(text: str, most: int) -> list[tuple[int, int, int, bool]]:
    """Sentences and headings as (start, end, words, a section or paragraph begins), none too long."""
    pieces: list[tuple[int, int, int, bool]] = []
    before: Unit | None = None
    for unit in units_of(text):
        words = word_spans(text[unit.start : unit.end])
        for first in range(0, len(words), most):
            part: Sequence[Span] = words[first : first + most]
            border = first == 0 and before is not None and _begins_something(text, before, unit)
            pieces.append((unit.start + part[0][0], unit.start + part[-1][1], len(part), border))
        before = unit
    return pieces


def _begins_something(text: str, before: Unit, unit: Unit) -> bool:
    if before.heading:
        return False  # a heading stays with what follows it
    return unit.heading or _BLANK_LINE.search(text, before.end, unit.start) is not None
