"""Reading a model's answer with distrust: fences, prefaces, half JSON, another form than was asked for."""

from __future__ import annotations

import json
import re
from typing import Any

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(?P<body>.*?)(?:```|\Z)", re.DOTALL)
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+")
_PREFACE = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay|ok)\b[^\n]{0,120}?[:!.]|here(?: is|'s| are)\b[^\n]{0,120}:)\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\A\**(?:hard negative|document|passage|text|answer)\**\s*:\**\s*", re.IGNORECASE)
_QUERY_KEYS = ("queries", "questions", "claims", "keywords", "titles", "query", "question", "claim", "title")
_TEXT_KEYS = ("document", "hard_negative", "negative", "passage", "text")
_MOST_LINES = 20


class UnusableAnswer(Exception):
    """An answer that holds nothing of the asked form.

    Attributes:
        reason: What is wrong, in words that can be put to the model.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_queries(answer: str, *, limit: int) -> list[str]:
    """The queries in an answer.

    Accepted are ``{"queries": [...]}``, a bare JSON list, the common misspellings of both, and, if the
    answer holds no JSON at all, one query per line.

    Args:
        answer: A completion's text.
        limit: At most so many queries are taken.

    Returns:
        At least one query, each of one line.

    Raises:
        UnusableAnswer: If nothing usable is in it.
    """
    body = _body(answer)
    if re.search(r"[{\[]\s*[\"{\[]|[{\[]\s*[}\]]", body):
        queries = _queries_in(_json_in(body))
    else:
        queries = [_BULLET.sub("", line) for line in _PREFACE.sub("", body).splitlines()[:_MOST_LINES]]
        queries = [line for line in queries if not line.rstrip().endswith(":")]
    cleaned = [" ".join(query.split()).strip('"“”').strip() for query in queries]
    cleaned = [query for query in cleaned if query]
    if not cleaned:
        raise UnusableAnswer("it holds no query")
    return cleaned[:limit]


def parse_document(answer: str) -> str:
    """The document in an answer that should hold nothing else.

    Args:
        answer: A completion's text.

    Returns:
        The document's text, without fences, labels and a preface.

    Raises:
        UnusableAnswer: If there is none.
    """
    body = _body(answer)
    if body.startswith(("{", "[")):
        body = _document_in(body)
    body = _LABEL.sub("", _PREFACE.sub("", body)).strip()
    if len(body) > 1 and body[0] + body[-1] in ('""', "“”"):
        body = body[1:-1].strip()
    if not body:
        raise UnusableAnswer("it holds no text")
    return body


def _body(answer: str) -> str:
    text = _THINKING.sub("", answer).strip()
    fence = _FENCE.search(text)
    if fence is not None:
        text = fence["body"].strip()
    if not text:
        raise UnusableAnswer("it is empty")
    return text


def _json_in(text: str) -> Any:
    """The first whole JSON value that is an object or a list."""
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into strings
    for match in re.finditer(r"[{\[]", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            # Not the next bracket inside it: half an object's inner list could be half as well.
            break
        return value
    raise UnusableAnswer("its JSON is broken or cut off")


def _queries_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        for key in _QUERY_KEYS:
            if key in value:
                value = value[key]
                break
        else:
            raise UnusableAnswer('it is JSON of another form than {"queries": ["..."]}')
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise UnusableAnswer('it is JSON of another form than {"queries": ["..."]}')
    found = []
    for item in value:
        text = _text_of(item)
        if text is None:
            raise UnusableAnswer("a query in it is not a string")
        found.append(text)
    return found


def _text_of(item: Any) -> str | None:
    if isinstance(item, dict):
        values = [item[key] for key in ("text", *_QUERY_KEYS) if isinstance(item.get(key), str)]
        return values[0] if values else None
    return item if isinstance(item, str) else None


def _document_in(body: str) -> str:
    try:
        value = json.JSONDecoder(strict=False).raw_decode(body)[0]
    except (ValueError, RecursionError):
        if body.startswith('{"'):
            raise UnusableAnswer("its JSON is broken or cut off") from None
        return body  # a document may begin with a bracket
    if isinstance(value, dict):
        for key in _TEXT_KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
    raise UnusableAnswer("it is JSON, not the document's text")
