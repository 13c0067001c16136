"""Filters over metadata, in the Mongo-like form that this field uses, and what each part means.

``{"year": 2020, "lang": {"$in": ["en", "de"]}}`` keeps documents for which every key holds. Per key: a plain
value (equality), ``$eq``, ``$ne``, ``$in``, ``$nin``, ``$gt``, ``$gte``, ``$lt``, ``$lte``, ``$exists``,
``$not``. Around filters: ``$and``, ``$or`` (lists of filters) and ``$not`` (one filter).

- Keys of nested objects are joined by dots: ``{"author.name": "Ada"}``. The names ``$id`` and ``$parent``
  stand for the document's id and parent id, and take no bounds.
- A list in metadata matches if one of its elements does. The bounds of one key (``$gte`` beside ``$lt``) must
  hold for the same element.
- Numbers compare with numbers (``1 == 1.0``), texts with texts by code point, booleans only for equality;
  values of other types never match, they are no error.
- Of a text longer than 240 bytes the first 224 are compared, and then a hash of the whole.
- ``None`` matches a stored null, not a missing key. ``$ne``, ``$nin`` and ``$not`` keep documents without
  the key.
- ``{}`` keeps everything.

:func:`matches` is the definition; the index computes the same from SQL.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from stm_retriever.errors import ConfigError

Filter: TypeAlias = Mapping[str, Any]
"""See the module's text."""

Value = tuple[int, int | float | bytes]
"""A comparable value: its type (one of the numbers below), and what is compared within the type."""

NULL, BOOL, NUMBER, TEXT, CONTAINER = range(5)
ID, PARENT = "$id", "$parent"

RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS = ("$eq", "$ne", "$in", "$nin", *RANGES, "$exists", "$not")
_DEEPEST = 50  # a filter deeper than this was made by a broken program
_LONGEST_TEXT = 240  # bytes
_LARGEST_INTEGER = 2**63 - 1


def check_filter(where: Filter | None) -> None:
    """Say what is wrong with a filter, if anything.

    Raises:
        ConfigError: Naming the part that cannot be used; None is fine and means no filter.
    """
    if where is not None:
        _check(where, "where", 0)


def matches(
    where: Filter | None, metadata: Mapping[str, Any], *, id: str | None = None, parent_id: str | None = None
) -> bool:
    """Tell whether a document passes a filter that :func:`check_filter` has passed.

    Args:
        where: The filter; None passes everything.
        metadata: The document's metadata.
        id: The document's id, for the name ``$id``.
        parent_id: The document's parent, for the name ``$parent``.
    """
    if not where:
        return True
    values: dict[str, set[Value]] = {}
    for key, value in flatten(metadata):
        values.setdefault(key, set()).add(value)
    for key, given in ((ID, id), (PARENT, parent_id)):
        values.pop(key, None)  # metadata cannot pose as the document's own fields
        if given is not None:
            values[key] = {comparable(given)}
    return _matches(where, values)


def flatten(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yield every (key, comparable value) of metadata: nested keys by dots, lists by element.

    Objects and lists also yield their key with a value of type :data:`CONTAINER`, so that they exist.
    """
    for name, value in metadata.items():
        yield from _flatten(prefix + name, value)


def comparable(value: Any) -> Value:
    """Turn a JSON scalar into what SQL and Python compare alike.

    Texts become UTF-8 bytes, whose order is that of code points. Integers beyond 64 bits become floats.
    """
    if value is None:
        return NULL, 0
    if isinstance(value, bool):
        return BOOL, int(value)
    if isinstance(value, int):
        return NUMBER, int(value) if abs(value) <= _LARGEST_INTEGER else _as_float(value)
    if isinstance(value, float):
        return NUMBER, float(value)
    text = str(value).encode("utf-8", "surrogatepass")
    if len(text) > _LONGEST_TEXT:  # long values would make SQL's index as large as the documents
        text = text[: _LONGEST_TEXT - 16] + hashlib.blake2b(text, digest_size=16).digest()
    return TEXT, text


def bounds_of(condition: Mapping[str, Any]) -> dict[str, Value]:
    """The range operators of one key's condition, as comparable values."""
    return {name: comparable(condition[name]) for name in RANGES if name in condition}


def is_condition(value: Any) -> bool:
    """Whether what stands under a key is operators rather than a plain value."""
    return isinstance(value, Mapping)


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        yield key, (CONTAINER, 0)
        yield from flatten(value, f"{key}.")
    elif isinstance(value, (list, tuple)):
        yield key, (CONTAINER, 0)
        for element in value:
            yield from _flatten(key, element)
    else:
        yield key, comparable(value)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _matches(where: Filter, values: Mapping[str, set[Value]]) -> bool:
    return all(_part_matches(key, given, values) for key, given in where.items())


def _part_matches(key: str, given: Any, values: Mapping[str, set[Value]]) -> bool:
    if key == "$and":
        return all(_matches(part, values) for part in given)
    if key == "$or":
        return any(_matches(part, values) for part in given)
    if key == "$not":
        return not _matches(given, values)
    stored = values.get(key, set())
    if not is_condition(given):
        return comparable(given) in stored
    return _condition_holds(given, stored)


def _condition_holds(condition: Mapping[str, Any], stored: set[Value]) -> bool:
    bounds = bounds_of(condition)
    if bounds and not any(_within(value, bounds) for value in stored):
        return False
    return all(_operator_holds(name, given, stored) for name, given in condition.items())


def _operator_holds(name: str, given: Any, stored: set[Value]) -> bool:
    if name in RANGES:
        return True  # all bounds together, above
    if name == "$exists":
        return bool(stored) == bool(given)
    if name == "$not":
        return not _condition_holds(given, stored)
    wanted = {comparable(value) for value in (given if name in ("$in", "$nin") else [given])}
    return bool(wanted & stored) == (name in ("$eq", "$in"))


def _within(value: Value, bounds: Mapping[str, Value]) -> bool:
    kind, content = value
    return all(kind == bound[0] and RANGES[name](content, bound[1]) for name, bound in bounds.items())


def _check(where: Any, path: str, depth: int) -> None:
    if not isinstance(where, Mapping):
        raise ConfigError(
            f"The filter at {path} is a {type(where).__name__} ({where!r:.60}), not a dict. Pass for "
            'instance {"year": {"$gte": 2020}}.'
        )
    if depth > _DEEPEST:
        raise ConfigError(f"The filter is nested deeper than {_DEEPEST} levels. Write it flatter.")
    for key, given in where.items():
        if not isinstance(key, str):
            raise ConfigError(
                f"The filter at {path} has the key {key!r}, a {type(key).__name__}; metadata's keys are "
                "texts. Pass a str."
            )
        _check_part(key, given, f"{path}[{key!r}]", depth)


def _check_part(key: str, given: Any, path: str, depth: int) -> None:
    if key in ("$and", "$or"):
        if not _is_list(given):
            raise ConfigError(f"{path} is a {type(given).__name__}; {key} takes a list of filters.")
        for number, part in enumerate(given):
            _check(part, f"{path}[{number}]", depth + 1)
    elif key == "$not":
        _check(given, path, depth + 1)
    elif key.startswith("$") and key not in (ID, PARENT):
        raise ConfigError(
            f"{path}: there is no {key!r} around filters. There are $and, $or and $not; "
            f'{", ".join(OPERATORS)} stand under a key, as in {{"year": {{"$gte": 2020}}}}.'
        )
    elif is_condition(given):
        _check_condition(given, path, depth + 1)
        _check_own_field(key, given, path)
    else:
        _check_value(given, path)


def _check_own_field(key: str, condition: Mapping[str, Any], path: str) -> None:
    if key not in (ID, PARENT):
        return
    for name, given in condition.items():
        if name in RANGES:
            raise ConfigError(f"{path} has {name}, but {key} takes no bounds. Use $in with the ids.")
        if name == "$not":
            _check_own_field(key, given, path)


def _check_condition(condition: Mapping[Any, Any], path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ConfigError(f"The filter is nested deeper than {_DEEPEST} levels. Write it flatter.")
    if not condition:
        raise ConfigError(f"{path} is empty; say what should hold, for instance {{'$exists': True}}.")
    for name, given in condition.items():
        where = f"{path}[{name!r}]"
        if name not in OPERATORS:
            raise ConfigError(
                f"{where}: there is no operator {name!r}. There are {', '.join(OPERATORS)}; a key inside an "
                'object is written with a dot, as in {"author.name": "Ada"}.'
            )
        _check_operand(name, given, where, depth)


def _check_operand(name: str, given: Any, where: str, depth: int) -> None:
    if name in ("$in", "$nin"):
        if not _is_list(given):
            raise ConfigError(f"{where} is a {type(given).__name__}; {name} takes a list of values.")
        for number, value in enumerate(given):
            _check_value(value, f"{where}[{number}]")
    elif name == "$exists":
        if not isinstance(given, bool):
            raise ConfigError(f"{where} is {given!r:.60}; $exists takes True or False.")
    elif name == "$not":
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is a {type(given).__name__}; under a key $not takes operators.")
        _check_condition(given, where, depth + 1)
    else:
        _check_value(given, where)
        if name in RANGES and comparable(given)[0] not in (NUMBER, TEXT):
            raise ConfigError(f"{where} is {given!r}; {name} takes a number or a text.")


def _check_value(value: Any, path: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if math.isnan(value):
            raise ConfigError(f"{path} is not a number (NaN), which equals nothing. Leave it out.")
        return
    raise ConfigError(
        f"{path} is a {type(value).__name__} ({value!r:.60}); a filter compares with a text, number, bool or "
        "None. For one of several values write {'$in': [...]}; for a date its isoformat()."
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
