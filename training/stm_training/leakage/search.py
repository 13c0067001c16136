"""Look for what training and the test sets share: the entry of this package."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stm_retriever.errors import ConfigError
from stm_training.data.leakage import normalise
from stm_training.filtering.near_duplicates import NearDuplicates, feature_counts, features
from stm_training.leakage.join import Prepared, near_duplicates
from stm_training.leakage.report import Example, Kind, LeakageReport, Overlap, check_allowed
from stm_training.leakage.sets import ROLES, Role, TextSet, check_names
from stm_training.leakage.shingles import Shingler

THRESHOLD = 0.8
_EXAMPLES = 5


def find_overlaps(
    training: Sequence[TextSet],
    tests: Sequence[TextSet],
    *,
    threshold: float = THRESHOLD,
    allowed: Collection[str] = (),
    documents: bool = True,
    examples: int = _EXAMPLES,
) -> LeakageReport:
    """Compare every training set with every test set, queries and documents.

    A test text counts once, as the closest that it is to a training text: the same, the same once normalised
    (case, punctuation, spacing), or nearly the same. Two queries are nearly so by the Jaccard similarity of
    their words, found exactly; all other texts by that of their word 3-shingles, found by MinHash with a
    chance of .9992 at .8. Texts of fewer than three words have no shingles and are only looked for as equals.

    Args:
        training: What is trained on.
        tests: What is tested on, or chosen on.
        threshold: Jaccard similarity from which texts count as nearly the same, above 0 up to 1. Below .8,
            MinHash finds fewer of the pairs at the threshold itself: three of four at .6.
        allowed: Names of test sets whose leaks are no error; they are counted and shown all the same.
        documents: Also look at documents; without, queries with queries only.
        examples: How many to keep per overlap, equal ones first.

    Returns:
        The counts and examples.

    Raises:
        ConfigError: For a threshold out of range, or an allowed name that no test set has.
        DataError: If two sets have one name.
    """
    if not 0 < threshold <= 1:
        message = f"The threshold of near duplicates is {threshold:g}; it must be above 0 and at most 1."
        raise ConfigError(message)
    for sets in (training, tests):
        check_names(sets)
    check_allowed(allowed, [one.name for one in tests])
    shingler = Shingler()
    roles: tuple[Role, ...] = ROLES if documents else ("query",)
    sides = [
        [_Side(one.name, role, one.texts(role), shingler, threshold) for one in sets for role in roles]
        for sets in (training, tests)
    ]
    overlaps = tuple(_compare(train, test, examples) for train in sides[0] for test in sides[1])
    return LeakageReport(overlaps, threshold, tuple(sorted(allowed)))


@dataclass
class _Side:
    """The texts of one role of one set, with what they are compared by, each made when it is first needed."""

    name: str
    role: Role
    by_id: Mapping[str, str]
    shingler: Shingler
    threshold: float

    @cached_property
    def ids(self) -> list[str]:
        return list(self.by_id)

    @cached_property
    def texts(self) -> list[str]:
        return list(self.by_id.values())

    @cached_property
    def forms(self) -> list[str]:
        return [normalise(text) for text in self.texts]

    @cached_property
    def place_of_text(self) -> dict[str, int]:
        return {text: place for place, text in reversed(list(enumerate(self.texts)))}

    @cached_property
    def place_of_form(self) -> dict[str, int]:
        return {form: place for place, form in reversed(list(enumerate(self.forms)))}

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.shingler(self.texts))

    @cached_property
    def word_index(self) -> NearDuplicates:
        index = NearDuplicates(self.threshold, feature_counts(self.texts))
        for text in self.texts:
            index.add(text)
        return index


@dataclass(frozen=True, slots=True)
class _Found:
    """A partner in training of the test text at a place."""

    kind: Kind
    jaccard: float
    test: int
    train: int


def _compare(train: _Side, test: _Side, examples: int) -> Overlap:
    found = _equal(train, test)
    hits = {place for place, form in enumerate(train.forms) if form in test.place_of_form}
    near, near_hits = (
        _near_queries(train, test) if train.role == test.role == "query" else _near_texts(train, test)
    )
    equal = {one.test for one in found}
    more = sorted((one for one in near if one.test not in equal), key=lambda one: (-one.jaccard, one.test))
    counts = {kind: sum(one.kind == kind for one in found) for kind in ("exact", "normalised")}
    return Overlap(
        train=train.name,
        test=test.name,
        train_role=train.role,
        test_role=test.role,
        train_texts=len(train.texts),
        test_texts=len(test.texts),
        exact=counts["exact"],
        normalised=counts["normalised"],
        near=len(more),
        train_hits=len(hits | near_hits),
        test_ids=tuple(test.ids[one.test] for one in [*found, *more]),
        examples=tuple(_example(one, train, test) for one in _chosen(found, more, examples)),
    )


def _chosen(found: Sequence[_Found], near: Sequence[_Found], count: int) -> list[_Found]:
    """Equal ones first, but some of the near ones too: those are the ones to judge by eye."""
    kept = min(len(near), count // 2)
    first = list(found[: count - kept])
    return [*first, *near[: count - len(first)]]


def _example(one: _Found, train: _Side, test: _Side) -> Example:
    return Example(
        one.kind,
        round(one.jaccard, 4),
        test.ids[one.test],
        test.texts[one.test],
        train.ids[one.train],
        train.texts[one.train],
    )


def _equal(train: _Side, test: _Side) -> list[_Found]:
    """Exact ones first, then those equal once normalised; each in the test set's order."""
    exact, normalised = [], []
    for place, (text, form) in enumerate(zip(test.texts, test.forms, strict=True)):
        if text in train.place_of_text:
            exact.append(_Found("exact", 1.0, place, train.place_of_text[text]))
        elif form in train.place_of_form:
            normalised.append(_Found("normalised", 1.0, place, train.place_of_form[form]))
    return [*exact, *normalised]


def _near_queries(train: _Side, test: _Side) -> tuple[list[_Found], set[int]]:
    """Queries are too short for shingles, so their words are compared; nothing is missed.

    The test queries are indexed, since they are few, and the training queries go by; those that resemble one
    are then the only ones in which partners are looked for.
    """
    hits = [place for place, text in enumerate(train.texts) if test.word_index.find(text) is not None]
    texts = [train.texts[place] for place in hits]
    alike = NearDuplicates(train.threshold, feature_counts(texts))
    for text in texts:
        alike.add(text)
    found = [
        _Found("near", _words_jaccard(text, partner), place, train.place_of_text[partner])
        for place, text in enumerate(test.texts if hits else ())
        if (partner := alike.find(text)) is not None
    ]
    return found, set(hits)


def _words_jaccard(left: str, right: str) -> float:
    ours, theirs = features(left), features(right)
    return len(ours & theirs) / len(ours | theirs)


def _near_texts(train: _Side, test: _Side) -> tuple[list[_Found], set[int]]:
    matches = near_duplicates(train.prepared, test.prepared, threshold=train.threshold)
    found = [
        _Found("near", float(matches.right_jaccard[place]), int(place), int(matches.right[place]))
        for place in np.flatnonzero(matches.right >= 0)
    ]
    return found, set(np.flatnonzero(matches.left >= 0).tolist())
