"""Do training queries give away development or test queries? Exact and normalised duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stm_retriever.errors import DataError
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
_SHOWN_OFFENDERS = 10


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


def jaccard(left: str, right: str) -> float:
    """Shared share of two texts' token sets, from 0 to 1; two texts without tokens share nothing."""
    a, b = set(tokens(left)), set(tokens(right))
    return len(a & b) / len(a | b) if a and b else 0.0


def nearest(queries: Mapping[str, str], train: Iterable[str]) -> dict[str, tuple[float, str]]:
    """For each query the training query with the highest token Jaccard.

    Args:
        queries: Query texts by id.
        train: Training queries.

    Returns:
        (Jaccard, training query) by query id; ``(0.0, "")`` where no token is shared.
    """
    texts = list(dict.fromkeys(train))
    sets = [set(tokens(text)) for text in texts]
    postings: dict[str, list[int]] = defaultdict(list)
    for index, words in enumerate(sets):
        for word in words:
            postings[word].append(index)
    best: dict[str, tuple[float, str]] = {}
    for query_id, query in queries.items():
        words = set(tokens(query))
        shared: dict[int, int] = defaultdict(int)
        for word in words:
            for index in postings.get(word, ()):
                shared[index] += 1
        scores = [(n / (len(words) + len(sets[index]) - n), -index) for index, n in shared.items()]
        score, place = max(scores, default=(0.0, 1))
        best[query_id] = (score, texts[-place] if place <= 0 else "")
    return best


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


def check_leakage(
    train_queries: Iterable[str],
    held_out: Mapping[str, str],
    *,
    name: str = "held-out",
    remedy: str = "Remove them from the training queries (stm_training.data.leakage.without_leaks does it)",
) -> None:
    """Refuse to go on where a training query is also a development or test query.

    Args:
        train_queries: Texts.
        held_out: Development or test query texts by id.
        name: What the held-out queries are called in the message, for instance ``"scifact/test"``.
        remedy: What to do about it, for the message.

    Raises:
        DataError: Listing the offenders.
    """
    leaks = find_leaks(train_queries, held_out)
    if not leaks:
        return
    lines = [
        f"  {leak.held_out_id}: {leak.held_out!r} "
        + ("is a training query" if leak.exact else f"is, but for case or punctuation, {leak.train!r}")
        for leak in leaks[:_SHOWN_OFFENDERS]
    ]
    if len(leaks) > _SHOWN_OFFENDERS:
        lines.append(f"  ... and {len(leaks) - _SHOWN_OFFENDERS} more")
    message = (
        f"{len(leaks)} of {len(held_out)} {name} queries are also training queries, so their score would "
        "prove nothing. "
        f"{remedy}:\n" + "\n".join(lines)
    )
    raise DataError(message)


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
