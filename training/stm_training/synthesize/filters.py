"""What is not worth training on: each filter counts what it drops and keeps examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from stm_training.data.leakage import normalise, tokens
from stm_training.data.records import Passage

_EXAMPLES = 5

# What a model declines to do; a patient who writes "I can't sleep" declines nothing.
_DECLINED = r"(?:answer|assist|comply|create|do (?:so|that|this)|fulfil|generate|help|produce|provide|write)"
_REFUSAL = re.compile(
    rf"\A\W*(?:i can(?:no|['’])t {_DECLINED}|(?:i am|i['’]m) (?:un|not )able to {_DECLINED})\b|"
    r"\A\W*(?:(?:i['’]?m |i am )?sorry\b|"
    r"as an ai\b|as a language model|unfortunately,? (?:i|the|this)\b|n/?a\W*\Z|none\W*\Z|not applicable\b|"
    r"no (?:(?:relevant|answerable|suitable|valid) )?(?:question|quer(?:y|ies)|claim|keyword|title)s? "
    r"(?:can|could|is|are)\b|"
    r"there is (?:no|not enough|insufficient) (?:information|content|text)|insufficient information|"
    r"the (?:document|passage|text) (?:does not|doesn['’]t|contains no|provides no|lacks))",
    re.IGNORECASE,
)
_THING = (
    r"(?:passage|document|text|article|excerpt|paragraph|abstract|snippet|context|paper|study|trial|report|"
    r"review|section|table|figure)"
)
_REFERENCE = re.compile(
    rf"\b(?:this|the (?:given|provided|above|following|present|current|described)|these) {_THING}s?\b"
    r"|\b(?:the|these) (?:passage|document|text|excerpt|paragraph|abstract|snippet|author|article)s?\b"
    rf"|\b{_THING} (?:above|below)\b|\b(?:described|mentioned|discussed|reported) (?:here|above|herein)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the filters draw their lines; words are single characters in scripts without spaces.

    Attributes:
        shortest: Fewest words of a query.
        longest: Most words of a query.
        copied_run: A run of so many words that also stands in the passage is copied.
        copied_whole: A query of at least so many words that stands in the passage as a whole is copied.
        negative_shortest: Fewest words of a hard negative.
        negative_overlap: A negative whose word set shares more (Jaccard) with the positive's is too close.
    """

    shortest: int = 2
    longest: int = 80
    copied_run: int = 10
    copied_whole: int = 6
    negative_shortest: int = 10
    negative_overlap: float = 0.8


@dataclass(frozen=True, slots=True)
class Dropped:
    """What one filter dropped.

    Attributes:
        count: How many texts.
        examples: The first few, each with its passage's id.
    """

    count: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    def plus(self, document_id: str, text: str) -> Dropped:
        """One more."""
        examples = self.examples
        if len(examples) < _EXAMPLES:
            examples = (*examples, (document_id, text))
        return Dropped(self.count + 1, examples)


@dataclass
class DropLog:
    """Counts and examples by filter."""

    by_filter: dict[str, Dropped] = field(default_factory=dict)

    def add(self, name: str, document_id: str, text: str) -> None:
        """Note that a filter dropped a text."""
        self.by_filter[name] = self.by_filter.get(name, Dropped()).plus(document_id, text)


def is_empty(text: str) -> bool:
    """Holds no letter or digit."""
    return not any(character.isalnum() for character in text)


def is_refusal(text: str) -> bool:
    """The model declines instead of answering."""
    return _REFUSAL.search(text) is not None


def refers_to_passage(text: str) -> bool:
    """Speaks of "this passage", which nobody who searches has seen."""
    return _REFERENCE.search(text) is not None


def copies(query: str, passage: str, *, run: int, whole: int) -> bool:
    """Whether a query repeats a long run of a passage's words.

    Args:
        query: The query.
        passage: The passage that it was written from.
        run: Words in a row that count as copied.
        whole: Fewest words of a query that counts as copied when all of it stands in the passage.

    Returns:
        True if it does.
    """
    words = tokens(query)
    size = min(run, len(words))
    if size < min(whole, run):
        return False
    source = tokens(passage)
    runs = {tuple(source[i : i + size]) for i in range(len(source) - size + 1)}
    return any(tuple(words[i : i + size]) in runs for i in range(len(words) - size + 1))


def query_problem(query: str, passage: Passage, limits: Limits) -> str | None:
    """The name of the filter that drops a query, or ``None``; duplicates are :class:`SeenQueries`' part."""
    if is_empty(query):
        return "empty"
    if is_refusal(query):
        return "refusal"
    if refers_to_passage(query):
        return "refers_to_passage"
    count = len(tokens(query))
    if count < limits.shortest:
        return "too_short"
    if count > limits.longest:
        return "too_long"
    if copies(query, passage.content, run=limits.copied_run, whole=limits.copied_whole):
        return "copied"
    return None


def negative_problem(negative: str, passage: Passage, limits: Limits) -> str | None:
    """The name of the filter that drops a hard negative, or ``None``."""
    if is_empty(negative):
        return "negative_empty"
    if is_refusal(negative):
        return "negative_refusal"
    words = set(tokens(negative))
    if len(tokens(negative)) < limits.negative_shortest:
        return "negative_too_short"
    source = set(tokens(passage.content))
    if words and len(words & source) / len(words | source) > limits.negative_overlap:
        return "negative_like_positive"
    return None


class SeenQueries:
    """Drops what was there before: the same query of another passage, or a held-out one.

    Args:
        held_out: Development and test queries; none of them may be trained on.
    """

    def __init__(self, held_out: Iterable[str] = ()) -> None:
        self._held_out = {normalise(text) for text in held_out}
        self._seen: set[str] = set()

    def problem(self, query: str) -> str | None:
        """``"held_out"``, ``"duplicate"``, or ``None``, in which case the query counts as seen."""
        form = normalise(query)
        if form in self._held_out:
            return "held_out"
        if form in self._seen:
            return "duplicate"
        self._seen.add(form)
        return None
