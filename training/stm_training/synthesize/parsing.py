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
_JSON = re.compile(r"[{\[]\s*[\"{\[]|[{\[]\s*[}\]]")
_LABEL = re.compile(r"\A\**(?:hard negative|document|passage|text|answer)\**\s*:\**\s*", re.IGNORECASE)
_QUERY_LABEL = re.compile(r"\A\**(?:query|question|request)\**\s*:\**\s*", re.IGNORECASE)
_QUERY_KEYS = ("queries", "questions", "claims", "keywords", "titles", "query", "question", "claim", "title")
_TASK_KEYS = ("tasks", "task")
_PAIR_KEYS = {
    "query": ("query", "user_query", "question"),
    "positive": ("positive", "positive_document", "document", "passage"),
    "hard_negative": ("hard_negative", "hard_negative_document", "negative"),
}
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


def parse_queries(answer: str, *, limit: int, whole: bool = False) -> list[str]:
    """The queries in an answer.

    Accepted are ``{"queries": [...]}``, a bare JSON list, the common misspellings of both, and, if the
    answer holds no JSON at all, one query per line.

    Args:
        answer: A completion's text.
        limit: At most so many queries are taken.
        whole: Without JSON, the whole answer is one query (long requests run over several lines).

    Returns:
        At least one query, each of one line.

    Raises:
        UnusableAnswer: If nothing usable is in it.
    """
    body = _body(answer)
    if _JSON.search(body):
        queries = _strings_in(_json_in(body), _QUERY_KEYS)
    elif whole:
        queries = [_QUERY_LABEL.sub("", _PREFACE.sub("", body))]
    else:
        queries = _lines_in(body)
    cleaned = _cleaned(queries)
    if not cleaned:
        raise UnusableAnswer("it holds no query")
    return cleaned[:limit]


def parse_tasks(answer: str, *, limit: int) -> list[str]:
    """The retrieval tasks in an answer, in the forms that :func:`parse_queries` takes.

    Raises:
        UnusableAnswer: If there is none.
    """
    body = _body(answer)
    found = _strings_in(_json_in(body), _TASK_KEYS) if _JSON.search(body) else _lines_in(body)
    cleaned = _cleaned(found)
    if not cleaned:
        raise UnusableAnswer("it holds no task")
    return cleaned[:limit]


def parse_pair(answer: str) -> tuple[str, str, str | None]:
    """Query, positive and hard negative (``None`` if missing) in an answer that must be a JSON object.

    Raises:
        UnusableAnswer: If query or positive are missing or empty.
    """
    value = _json_in(_body(answer))
    if not isinstance(value, dict):
        raise UnusableAnswer("it is not a JSON object")
    texts: dict[str, str] = {}
    for name, keys in _PAIR_KEYS.items():
        found = [value[key].strip() for key in keys if isinstance(value.get(key), str)]
        if found and found[0]:
            texts[name] = found[0]
    for name in ("query", "positive"):
        if name not in texts:
            raise UnusableAnswer(f'its JSON has no text for "{name}"')
    return " ".join(texts["query"].split()), texts["positive"], texts.get("hard_negative")


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


def _lines_in(body: str) -> list[str]:
    lines = [_BULLET.sub("", line) for line in _PREFACE.sub("", body).splitlines()[:_MOST_LINES]]
    return [line for line in lines if not line.rstrip().endswith(":")]


def _cleaned(texts: list[str]) -> list[str]:
    cleaned = [" ".join(text.split()).strip('"“”').strip() for text in texts]
    return [text for text in cleaned if text]


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


def _strings_in(value: Any, keys: tuple[str, ...]) -> list[str]:
    other = f'it is JSON of another form than {{"{keys[0]}": ["..."]}}'
    if isinstance(value, dict):
        for key in keys:
            if key in value:
                value = value[key]
                break
        else:
            raise UnusableAnswer(other)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise UnusableAnswer(other)
    found = []
    for item in value:
        text = _text_of(item, keys)
        if text is None:
            raise UnusableAnswer(f"one of its {keys[0]} is not a string")
        found.append(text)
    return found


def _text_of(item: Any, keys: tuple[str, ...]) -> str | None:
    if isinstance(item, dict):
        values = [item[key] for key in ("text", *keys) if isinstance(item.get(key), str)]
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
