"""Do training queries give away development or test queries? Exact and normalised duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stm_training.data.records import Pair

_NOT_WORD = re.compile(r"[\W_]+")
# One token per character in scripts that put no spaces between words.
_TOKEN = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003134f]|[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]+"
)
# Plain ASCII, which most texts are, needs none of this: letters and digits stay, in lower case.
_ASCII_WORDS = bytes(
    ord(chr(code).lower()) if code < 128 and chr(code).isalnum() else ord(" ") for code in range(256)
)


@dataclass(frozen=True, slots=True)
class Leak:
    """A held-out query that also is a training query.

    Attributes:
        held_out_id: Its id.
        held_out: Its text.
        train: The training query's text.
        exact: The texts are the same; else only their normalised forms are.
    """

    held_out_id: str
    held_out: str
    train: str
    exact: bool


def normalise(text: str) -> str:
    """Case, accents' encoding, punctuation and spacing removed (NFKC, casefold, words joined by a space)."""
    if text.isascii() and (words := _ascii_words(text)):
        return " ".join(words)
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", folded)).strip()
    return plain or " ".join(folded.split())  # a text of punctuation alone stays itself


def tokens(text: str) -> list[str]:
    """Words of a text, case-folded; single characters in scripts without spaces."""
    if text.isascii():
        return _ascii_words(text)
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def _ascii_words(text: str) -> list[str]:
    return text.encode("ascii").translate(_ASCII_WORDS).decode("ascii").split()


def find_leaks(train_queries: Iterable[str], held_out: Mapping[str, str]) -> list[Leak]:
    """Held-out queries that equal a training query, exactly or once normalised.

    Args:
        train_queries: Texts.
        held_out: Development or test query texts by id.

    Returns:
        The leaks, in the order of ``held_out``.
    """
    exact = set(train_queries)
    by_form = {normalise(text): text for text in sorted(exact, reverse=True)}
    leaks = []
    for query_id, text in held_out.items():
        if text in exact:
            leaks.append(Leak(query_id, text, text, exact=True))
        elif (form := normalise(text)) in by_form:
            leaks.append(Leak(query_id, text, by_form[form], exact=False))
    return leaks


def without_leaks(pairs: Iterable[Pair], held_out: Iterable[str]) -> tuple[list[Pair], list[Pair]]:
    """Part training pairs into those that are safe and those whose query is a held-out query.

    Args:
        pairs: Training pairs.
        held_out: Development and test query texts.

    Returns:
        (kept, dropped), each in the given order.
    """
    forms = {normalise(text) for text in held_out}
    kept: list[Pair] = []
    dropped: list[Pair] = []
    for pair in pairs:
        (dropped if normalise(pair.query) in forms else kept).append(pair)
    return kept, dropped
