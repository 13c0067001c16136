"""Before a training: stop at test queries among the training queries, or leave those pairs out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm_training.data.leakage import normalise
from stm_training.data.records import Pair
from stm_training.leakage.report import LeakageReport, refuse_leaks
from stm_training.leakage.search import find_overlaps
from stm_training.leakage.sets import TextSet, pairs_as_set

_EXAMPLES = 5
_EXAMPLE_LENGTH = 300  # characters; a report needs no whole document
_REMEDY = (
    "Remove them from the training queries, let the recipe leave them out (on_leak: drop), or allow the test "
    "set by its name (allow_leaks) if you mean it"
)


@dataclass(frozen=True)
class Gate:
    """What was found, and which pairs may pass.

    Attributes:
        report: Counts and examples.
        forms: Normalised texts of the training queries that are queries of a test set which is not allowed.
        dropped: Pairs that :meth:`keep` leaves out of those that were examined.
    """

    report: LeakageReport
    forms: frozenset[str]
    dropped: int

    def keep(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs whose query is no such test query, in their order."""
        return [pair for pair in pairs if normalise(pair.query) not in self.forms]

    def summary(self) -> dict[str, Any]:
        """Counts over all sets and some examples, for the run's report."""
        asked = [one for one in self.report.overlaps if one.train_role == one.test_role == "query"]
        read = [one for one in self.report.overlaps if one.train_role == one.test_role == "document"]
        near = [example for one in asked + read for example in one.examples if example.kind == "near"]
        by_test = {one.test: one.test_texts for one in asked}
        by_train = {one.train: one.train_texts for one in asked}
        return {
            "train_queries": sum(by_train.values()),
            "checked_against": sum(by_test.values()),
            "exact": sum(one.exact for one in asked),
            "normalised": sum(one.normalised for one in asked),
            "dropped": self.dropped,
            "near": sum(one.near for one in asked),
            "near_documents": sum(one.equal + one.near for one in read) if read else None,
            "threshold": self.report.threshold,
            "examples": [
                {
                    "test": example.test[:_EXAMPLE_LENGTH],
                    "train": example.train[:_EXAMPLE_LENGTH],
                    "similarity": example.jaccard,
                }
                for example in near[:_EXAMPLES]
            ],
        }


def examine(
    training: Mapping[str, Sequence[Pair]],
    tests: Sequence[TextSet],
    *,
    drop: bool,
    allowed: Collection[str] = (),
    documents: bool = True,
) -> Gate:
    """Look at everything that is trained on before it is.

    Args:
        training: Pairs by where they come from (the run's own, an expert's file).
        tests: Every development and test set, guards too.
        drop: Leave leaking pairs out; else stop at them.
        allowed: Names of test sets whose queries may be trained on.
        documents: Also look at documents, for the report.

    Returns:
        What may pass.

    Raises:
        DataError: If test queries are trained on and are neither allowed nor dropped.
        ConfigError: If an allowed name is that of no test set.
    """
    sets = [pairs_as_set(name, pairs) for name, pairs in training.items()]
    report = find_overlaps(sets, tests, allowed=allowed, documents=documents)
    if not drop:
        refuse_leaks(report, remedy=_REMEDY)
    guarded = {one.test for one in report.leaks}
    held_out = {normalise(text) for one in tests if one.name in guarded for text in one.queries.values()}
    rows = [normalise(pair.query) for pairs in training.values() for pair in pairs]
    return Gate(report, frozenset(held_out & set(rows)), sum(form in held_out for form in rows))
