"""Refuse prompts that say more than what is searched for: metrics, addresses, dates, the test data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stm_training.data.leakage import normalise, tokens


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a prompt is refused.

    Attributes:
        rule: ``metric``, ``test_data``, ``url``, ``date``, ``identifier``, ``placeholder``, ``reply``,
            ``form`` or ``length``.
        reason: What was found, in words that can be put to a person or a model.
    """

    rule: str
    reason: str

    def __str__(self) -> str:
        return self.reason


_METRICS = re.compile(
    r"""\b(?: n?dcg | mrr | (?:mean\ )?reciprocal\ rank | (?:mean\ )?average\ precision
    | recall | precision(?!\s+(?:medicine|oncology|agriculture|engineering|therap)) | hit[\ -]?rate
    | f1(?:[\ -]?score)? | (?:evaluation|performance|quality|retrieval|ranking)\ (?:metric|measure|score)s?
    | metrics? | leaderboards? | top[\ -]?(?:k|\d+) | [a-z]+@(?:k|\d+) )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_METRIC_NAMES = re.compile(r"\b(?:MAP|AUC|ROC|P@\d+|R@\d+)\b")  # "map the query" is no metric
_TEST_TALK = re.compile(
    r"""\b(?: benchmarks? | test[\ -](?:set|split|quer(?:y|ies)|data) | (?:dev|development|validation)[\ -]
    (?:set|split|quer(?:y|ies)) | qrels? | relevance\ (?:judge?ments?|labels?) | ground[\ -]truth
    | gold(?:en)?[\ -](?:labels?|documents?|standard|passages?) | data\ ?sets? )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_BENCHMARKS = re.compile(
    r"""\b(?: mteb | beir | sci-?fact | nf-?corpus | trec(?:-covid)? | fiqa | arguana | scidocs | hotpot-?qa
    | ms[\ -]?marco | dbpedia | climate-fever | cqadupstack | touch[eé]-?2020 | natural\ questions
    | medqa | pubmedqa | bioasq | medquad | curev1 | publichealthqa | feedbackqa )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_BENCHMARK_NAMES = re.compile(r"\b(?:FEVER|NQ|Quora)\b")  # fever is also an illness
_URL = re.compile(
    r"\b(?:https?|ftp)://\S*|\bwww\.\S+|\b[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|io|ai|info|de|uk|eu)\b"
    r"|\b[\w.+-]+@[\w-]+\.[\w.]+",
    re.IGNORECASE,
)
_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    rf"\b(?:1[6-9]|20)\d\d(?:s\b|\b)|\b\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}\b"
    rf"|\b{_MONTHS}\ \d{{1,4}}\b|\b\d{{1,2}}(?:st|nd|rd|th)?\ (?:of\ )?{_MONTHS}(?=\W|$)",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(
    r"\b(?=[\w-]*\d)[0-9a-f]{8}(?:-[0-9a-f]{4,})+\b"  # UUIDs
    r"|\b\w*\d\w*\d\w*\d\w*\b"  # any word with three digits
    r"|\b(?:q|d|doc|query|pmid|pmc|nct|doi|id)[-_:#]?\ ?\d+\b",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|<[a-z_]+>|\[[A-Z_ ]{2,}\]|%s")
_REPLY = re.compile(
    r"\A\W*(?:sure|certainly|of course|okay|here(?: is|'s| are)|i'?m sorry|i (?:can(?:no|')t|apologi[sz]e)"
    r"|as an ai|(?:new |better |improved )?instruction\s*:)",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff]")

_PATTERNS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("metric", _METRICS, "it names a measure of quality"),
    ("metric", _METRIC_NAMES, "it names a measure of quality"),
    ("test_data", _TEST_TALK, "it speaks of the evaluation"),
    ("test_data", _BENCHMARKS, "it names a benchmark"),
    ("test_data", _BENCHMARK_NAMES, "it names a benchmark"),
    ("url", _URL, "it holds an address"),
    ("date", _DATE, "it holds a date or a year"),
    ("identifier", _IDENTIFIER, "it holds what looks like an identifier"),
    ("placeholder", _PLACEHOLDER, "it holds a placeholder that nothing will fill"),
    ("reply", _REPLY, "it is a reply, not an instruction"),
)
_MOST_LINES = 2  # line breaks: the template's, and one of the prompt's own
_LEAST_WHOLE_QUERY = 4  # words; shorter queries are topics that a prompt may well name
_RUN, _RUN_UNSPACED = 6, 12  # words, and characters of scripts that put no spaces between words


class PromptLinter:
    """Checks prompts before any of them is scored.

    Args:
        dataset_names: Names that give the data away.
        queries: Development and test queries; a prompt that copies one is refused.
        max_characters: Longest prompt.
        count_tokens: Counts tokens of texts as the model sees them, if the limit below is to hold.
        max_tokens: Most tokens of a prompt.
    """

    def __init__(
        self,
        *,
        dataset_names: Iterable[str] = (),
        queries: Iterable[str] = (),
        max_characters: int = 300,
        count_tokens: Callable[[list[str]], Sequence[int]] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._names = {_squeezed(name): name for name in dataset_names if _squeezed(name)}
        self._whole: dict[str, str] = {}
        self._runs: dict[tuple[str, ...], str] = {}
        for query in dict.fromkeys(queries):
            words = tokens(query)
            if len(words) >= _LEAST_WHOLE_QUERY:
                self._whole.setdefault(normalise(query), query)
            for run in _runs(words):
                self._runs.setdefault(run, query)
        self.max_characters = max_characters
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens

    def check(self, prompt: str) -> tuple[Finding, ...]:
        """Everything that is wrong with a prompt; nothing for a clean one."""
        dateless = _DATE.sub(" ", prompt)  # a year is no identifier as well
        found = [
            Finding(rule, f"{words} ({match[0]!r})")
            for rule, pattern, words in _PATTERNS
            for match in [pattern.search(dateless if rule == "identifier" else prompt)]
            if match is not None
        ]
        return (*found, *self._data_findings(prompt), *self._form_findings(prompt))

    def _data_findings(self, prompt: str) -> list[Finding]:
        words = tokens(prompt)
        joined = {"".join(words[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(words) - n + 1)}
        found = [
            Finding("test_data", f"it names the data ({name!r})")
            for squeezed, name in self._names.items()
            if squeezed in joined
        ]
        plain = f" {normalise(prompt)} "
        copied = next((query for form, query in self._whole.items() if f" {form} " in plain), None)
        if copied is None:
            copied = next((self._runs[run] for run in _runs(words) if run in self._runs), None)
        if copied is not None:
            found.append(Finding("test_data", f"it copies words of a held-out query ({copied[:80]!r})"))
        return found

    def _form_findings(self, prompt: str) -> list[Finding]:
        found = []
        if _INVISIBLE.search(prompt):
            found.append(Finding("form", "it holds tabs, control characters or invisible characters"))
        if prompt.count("\n") > _MOST_LINES or "\n\n" in prompt or prompt.startswith("\n"):
            found.append(
                Finding("form", f"it has {prompt.count(chr(10))} line breaks, or empty lines; write one line")
            )
        if "```" in prompt or "   " in prompt:
            found.append(Finding("form", "it holds a code fence or runs of spaces"))
        if len(prompt) > self.max_characters:
            found.append(
                Finding(
                    "length", f"it has {len(prompt)} characters; at most {self.max_characters} are allowed"
                )
            )
        elif self._count_tokens is not None and self._max_tokens is not None:
            count = self._count_tokens([prompt])[0]
            if count > self._max_tokens:
                found.append(
                    Finding(
                        "length", f"it takes {count} tokens; over {self._max_tokens} would cut queries off"
                    )
                )
        return found


def _squeezed(name: str) -> str:
    return "".join(tokens(name))


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Runs of words that are long enough to be copied rather than common."""
    unspaced = sum(map(len, words)) < 2 * len(words)
    size = _RUN_UNSPACED if unspaced else _RUN
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
