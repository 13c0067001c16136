"""Filters as SQL: which labels pass. The same answer as ``stm_retriever.filters.matches``, from an index.

Each condition is one statement whose keys and values are parameters; and, or and not are set operations on
the sorted labels that come back.
"""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Protocol

import numpy as np

from stm_retriever.errors import ConfigError
from stm_retriever.filters import ID, PARENT, Filter, Value, bounds_of, comparable, is_condition
from stm_retriever.index.reading import CHUNK, Reader, parse_labels
from stm_retriever.index.vectors import Labels

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_ATTRIBUTES = "SELECT group_concat(label) FROM attributes WHERE key = ?"
_COLUMNS = {ID: "id", PARENT: "parent_id"}  # the only names that reach a statement, both ours
_MOST_LABELS = 4_000_000  # remembered, of all filters together: 32 MB
_MOST_FILTERS = 64


class Selections:
    """The labels of the filters used last, as of one position of the log. Callers lock."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Labels] = OrderedDict()
        self._position = -1
        self._labels = 0

    def get(self, key: str, position: int) -> Labels | None:
        """Return what was put, if it was put at that position."""
        if position != self._position or key not in self._known:
            return None
        self._known.move_to_end(key)
        return self._known[key]

    def put(self, key: str, position: int, labels: Labels) -> None:
        """Remember a filter's labels."""
        if position != self._position:
            self._known.clear()
            self._position, self._labels = position, 0
        if key not in self._known:
            self._known[key] = labels
            self._labels += len(labels)
        while self._known and (self._labels > _MOST_LABELS or len(self._known) > _MOST_FILTERS):
            self._labels -= len(self._known.popitem(last=False)[1])


def key_of(where: Filter) -> str:
    """Name a filter that :func:`~stm_retriever.filters.check_filter` has passed; equal ones alike."""
    return json.dumps(where, sort_keys=True, default=dict)


def select(reader: Reader, where: Filter) -> Labels:
    """Return the sorted labels of the documents that pass a checked filter, inside one transaction."""
    return _Selection(reader).run(where)


class _Selection:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._everything: Labels | None = None

    def run(self, where: Filter) -> Labels:
        # Smallest first would need counts; most filters have one or two parts.
        return self._and([self._part(key, given) for key, given in where.items()])

    def _part(self, key: str, given: Any) -> Labels:
        if key == "$and":
            return self._and([self.run(part) for part in given])
        if key == "$or":
            return _union([self.run(part) for part in given])
        if key == "$not":
            return self._not(self.run(given))
        leaf: _Leaf = _Column(self._reader, _COLUMNS[key]) if key in _COLUMNS else _Key(self._reader, key)
        if not is_condition(given):
            return leaf.equal([given])
        return self._condition(leaf, given)

    def _condition(self, leaf: _Leaf, condition: Mapping[str, Any]) -> Labels:
        parts = [
            self._operator(leaf, name, given) for name, given in condition.items() if name not in _COMPARISONS
        ]
        bounds = bounds_of(condition)
        if bounds:
            parts.append(leaf.within(bounds))
        return self._and(parts)

    def _operator(self, leaf: _Leaf, name: str, given: Any) -> Labels:
        if name == "$exists":
            return leaf.present() if given else self._not(leaf.present())
        if name == "$not":
            return self._not(self._condition(leaf, given))
        found = leaf.equal(given if name in ("$in", "$nin") else [given])
        return found if name in ("$eq", "$in") else self._not(found)

    def _and(self, parts: Sequence[Labels]) -> Labels:
        if not parts:
            return self._all()
        return reduce(lambda one, two: np.intersect1d(one, two, assume_unique=True), sorted(parts, key=len))

    def _not(self, labels: Labels) -> Labels:
        return np.setdiff1d(self._all(), labels, assume_unique=True)

    def _all(self) -> Labels:
        if self._everything is None:
            self._everything = self._reader.labels()
        return self._everything


class _Leaf(Protocol):
    """The conditions on one name: sorted labels without repeats."""

    def equal(self, values: Sequence[Any]) -> Labels:
        """Labels that hold one of the values."""
        ...

    def within(self, bounds: Mapping[str, Value]) -> Labels:
        """Labels that hold a value inside the bounds."""
        ...

    def present(self) -> Labels:
        """Labels that hold any value."""
        ...


class _Key:
    """A key of metadata."""

    def __init__(self, reader: Reader, name: str) -> None:
        self._execute = reader.connection.execute
        row = self._execute("SELECT key FROM keys WHERE name = ?", (name_of(name),)).fetchone()
        self._key = -1 if row is None else int(row[0])

    def equal(self, values: Sequence[Any]) -> Labels:
        """Labels whose key holds one of the values."""
        by_type: dict[int, list[Any]] = defaultdict(list)
        for kind, value in dict.fromkeys(map(comparable, values)):
            by_type[kind].append(value)
        found = []
        for kind, chosen in by_type.items():
            for start in range(0, len(chosen), CHUNK):
                part = chosen[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                found.append(self._labels(f" AND type = ? AND value IN ({marks})", kind, *part))
        return _union(found)

    def within(self, bounds: Mapping[str, Value]) -> Labels:
        """Labels whose key holds a value inside the bounds."""
        kinds = {kind for kind, _ in bounds.values()}
        if len(kinds) > 1:  # no value is both a number and a text
            return np.empty(0, np.int64)
        clauses = "".join(f" AND value {_COMPARISONS[name]} ?" for name in bounds)
        return self._labels(f" AND type = ?{clauses}", kinds.pop(), *(value for _, value in bounds.values()))

    def present(self) -> Labels:
        """Labels that have the key."""
        return self._labels("")

    def _labels(self, clauses: str, *parameters: Any) -> Labels:
        return parse_labels(self._execute(_ATTRIBUTES + clauses, (self._key, *parameters)).fetchone()[0])


class _Column:
    """The document's own id or parent id, which are texts."""

    def __init__(self, reader: Reader, column: str) -> None:
        self._reader = reader
        self._start = f"SELECT label FROM documents WHERE {column}"  # noqa: S608  # one of our two names

    def equal(self, values: Sequence[Any]) -> Labels:
        """Labels of the documents with one of these."""
        texts = [value for value in dict.fromkeys(values) if isinstance(value, str) and _encodable(value)]
        rows = self._reader.select_in(f"{self._start} IN", texts)
        return np.unique(np.array([row[0] for row in rows], np.int64))

    def within(self, bounds: Mapping[str, Value]) -> Labels:
        """Ids have no order that a filter could mean."""
        raise ConfigError(
            f"{', '.join(bounds)} do not apply to {ID} and {PARENT}. Use $in or equality there."
        )

    def present(self) -> Labels:
        """Labels of the documents that have one."""
        rows = self._reader.connection.execute(f"{self._start} IS NOT NULL").fetchall()
        return np.unique(np.array([row[0] for row in rows], np.int64))


def name_of(key: str) -> bytes:
    """A metadata key as it is stored; JSON allows keys that are not Unicode."""
    return key.encode("utf-8", "surrogatepass")


def _union(parts: Sequence[Labels]) -> Labels:
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
