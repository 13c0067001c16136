"""What training and the test sets share, as counts and as examples to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stm_retriever.errors import ConfigError, DataError
from stm_training.leakage.sets import Role

Kind = Literal["exact", "normalised", "near"]
_SHOWN_OFFENDERS = 10


@dataclass(frozen=True)
class Example:
    """Two texts that are the same, or nearly.

    Attributes:
        kind: ``"exact"``; ``"normalised"``: equal but for case, punctuation and spacing; ``"near"``.
        jaccard: 1 for equal texts; else of the words (two queries) or the word 3-shingles.
        test_id: The test text's id.
        test: The test text.
        train_id: The training text's id.
        train: The training text.
    """

    kind: Kind
    jaccard: float
    test_id: str
    test: str
    train_id: str
    train: str


@dataclass(frozen=True)
class Overlap:
    """What the texts of one role in a training set and of one role in a test set share.

    Attributes:
        train: Name of the training set.
        test: Name of the test set.
        train_role: What the training texts are.
        test_role: What the test texts are.
        train_texts: How many different training texts there are.
        test_texts: How many test texts there are.
        exact: Test texts that are a training text.
        normalised: Further test texts that are one but for case, punctuation and spacing.
        near: Further test texts that are nearly one.
        train_hits: Training texts that are, or nearly are, a test text.
        test_ids: Ids of the test texts counted, equal ones first.
        examples: Some of them.
    """

    train: str
    test: str
    train_role: Role
    test_role: Role
    train_texts: int
    test_texts: int
    exact: int
    normalised: int
    near: int
    train_hits: int
    test_ids: tuple[str, ...]
    examples: tuple[Example, ...]

    @property
    def equal(self) -> int:
        """Test texts that are a training text, once normalised."""
        return self.exact + self.normalised

    @property
    def is_leak(self) -> bool:
        """Test queries are training queries, so that their score proves nothing.

        Documents in common are no leak by themselves: one corpus may serve training and test.
        """
        return self.train_role == self.test_role == "query" and self.equal > 0


@dataclass(frozen=True)
class LeakageReport:
    """All overlaps of some training sets with some test sets.

    Attributes:
        overlaps: One per training set, test set and pair of roles.
        threshold: Jaccard similarity from which texts count as nearly the same.
        allowed: Names of the test sets whose leaks are allowed.
    """

    overlaps: tuple[Overlap, ...]
    threshold: float
    allowed: tuple[str, ...] = ()

    @property
    def leaks(self) -> tuple[Overlap, ...]:
        """Test queries found among training queries, in sets that are not allowed."""
        return tuple(one for one in self.overlaps if one.is_leak and one.test not in self.allowed)

    def leaked_queries(self, test: str) -> frozenset[str]:
        """Ids of a test set's queries that are training queries of any set, once normalised."""
        return frozenset(
            id_
            for one in self.overlaps
            if one.test == test and one.is_leak
            for id_ in one.test_ids[: one.equal]
        )

    def figures(self) -> dict[str, Any]:
        """Everything but the lists of ids, for JSON."""
        rows = []
        for one in self.overlaps:
            row = asdict(one) | {"leak": one.is_leak, "allowed": one.test in self.allowed}
            del row["test_ids"]
            rows.append(row)
        return {"threshold": self.threshold, "leaks": len(self.leaks), "overlaps": rows}


def refuse_leaks(report: LeakageReport, *, remedy: str | None = None) -> None:
    """Refuse to go on where test queries are training queries and their set is not allowed by name.

    Args:
        report: What was found.
        remedy: What to do about it, for the message.

    Raises:
        DataError: With counts and texts.
    """
    if not report.leaks:
        return
    lines = []
    for one in report.leaks:
        lines.append(f"{one.equal} of {one.test_texts} queries of {one.test} are queries of {one.train}:")
        shown = [example for example in one.examples if example.kind != "near"][:_SHOWN_OFFENDERS]
        for example in shown:
            said = "as it stands" if example.kind == "exact" else f"as {example.train!r}"
            lines.append(f"  {example.test_id}: {example.test!r}, {example.train_id}, {said}")
        if one.equal > len(shown):
            lines.append(f"  ... and {one.equal - len(shown)} more")
    remedy = remedy or "Take these rows out of training, or allow the test set by its name if you mean it"
    message = "\n".join(
        [f"Test queries were trained on, so their score would prove nothing. {remedy}:", *lines]
    )
    raise DataError(message)


def check_allowed(allowed: Collection[str], tests: Sequence[str]) -> None:
    """Refuse a name that is none of the test sets: a misspelt one would allow nothing, silently.

    Raises:
        ConfigError: Naming it and the test sets.
    """
    unknown = sorted(set(allowed) - set(tests))
    if unknown:
        message = (
            f"Leaks are allowed for {', '.join(unknown)}, but no test set has that name; there are "
            f"{', '.join(tests) or 'none'}. Use one of these."
        )
        raise ConfigError(message)
