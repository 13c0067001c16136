"""What a synthesis brought, and what became of every document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stm_training.data.records import Pair, Passage
from stm_training.synthesize.asking import Failure
from stm_training.synthesize.filters import DropLog, Dropped, SeenQueries
from stm_training.synthesize.writer import Written


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one document.

    Attributes:
        document_id: The passage, or ``task:...`` for an invented pair.
        pairs: How many pairs came of it.
        failures: The tasks that brought nothing.
        dropped: Names of the filters that dropped texts of it.
    """

    document_id: str
    pairs: int = 0
    failures: tuple[Failure, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["done", "failed"]:
        """``done`` if every task was answered, whatever the filters made of the answers."""
        return "failed" if self.failures else "done"


@dataclass(frozen=True)
class SynthesisResult:
    """What a synthesis brought.

    Attributes:
        pairs: In the order of passages, then of kinds.
        counts: ``documents``, ``queries`` (parsed), ``pairs`` (kept), ``negatives`` (kept), ``asked``,
            ``reused`` (from the journal), ``reasked``, ``failures``, ``prompt_tokens``,
            ``completion_tokens``, and ``pairs_<kind>`` for each kind.
        dropped: What each filter dropped, with examples.
        failures: Every task that brought nothing, with its reason.
        sources: Pairs by what wrote them.
        notes: What a reader of the figures should know.
        outcomes: What became of each document, in their order.
        cost: Of all completions in the journal, in the currency of the prices.
        limit: The budget's limit that stopped the run, in words; ``None``: all was asked.
    """

    pairs: list[Pair]
    counts: dict[str, int]
    dropped: dict[str, Dropped] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    cost: float = 0.0
    limit: str | None = None


def collect(
    passages: Sequence[Passage],
    written: Sequence[Written],
    share_negative: bool,
    held_out_queries: Iterable[str],
) -> SynthesisResult:
    """Make pairs of what was written, without duplicates and held-out queries."""
    drops, seen = DropLog(), SeenQueries(held_out_queries)
    pairs: list[Pair] = []
    outcomes: list[Outcome] = []
    for passage, done in zip(passages, written, strict=True):
        dropped = [*done.drops]
        before = len(pairs)
        for place, (kind, query, model) in enumerate(done.queries):
            problem = seen.problem(query)
            if problem is not None:
                dropped.append((problem, query))
                continue
            own = done.negative is not None and (share_negative or kind == done.negative_kind)
            pairs.append(
                Pair(
                    query=query,
                    positive=passage.content,
                    negatives=(done.negative,) if own and done.negative is not None else (),
                    query_id=f"{passage.id}/{kind}/{place}",
                    positive_id=passage.id,
                    source=model,
                    kind=kind,
                )
            )
        for name, text in dropped:
            drops.add(name, passage.id, text)
        names = tuple(dict.fromkeys(name for name, _ in dropped))
        outcomes.append(Outcome(passage.id, len(pairs) - before, tuple(done.failures), names))
    parsed = sum(done.parsed for done in written)
    negatives = sum(done.negative is not None for done in written)
    return make_result(pairs, outcomes, parsed, negatives, drops)


def make_result(
    pairs: list[Pair], outcomes: list[Outcome], queries: int, negatives: int, drops: DropLog
) -> SynthesisResult:
    """Count everything."""
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    counts = {
        "documents": len(outcomes),
        "queries": queries,
        "pairs": len(pairs),
        "negatives": negatives,
        "failures": len(failures),
    }
    counts.update({f"pairs_{kind}": n for kind, n in sorted(Counter(pair.kind for pair in pairs).items())})
    sources = dict(sorted(Counter(pair.source for pair in pairs).items()))
    dropped = dict(sorted(drops.by_filter.items()))
    return SynthesisResult(pairs, counts, dropped, failures, sources, outcomes=outcomes)


def joined(first: SynthesisResult, second: SynthesisResult) -> SynthesisResult:
    """Two syntheses that share a journal and a budget, as one; the second's duplicates are left out."""
    seen = SeenQueries()
    pairs = [pair for pair in [*first.pairs, *second.pairs] if seen.problem(pair.query) is None]
    dropped = dict(first.dropped)
    for name, one in second.dropped.items():
        both = dropped.get(name, Dropped())
        dropped[name] = Dropped(both.count + one.count, (*both.examples, *one.examples))
    counts = Counter(first.counts)
    counts.update(second.counts)
    counts["pairs"] = len(pairs)
    return SynthesisResult(
        pairs,
        dict(counts),
        dict(sorted(dropped.items())),
        [*first.failures, *second.failures],
        dict(sorted(Counter(pair.source for pair in pairs).items())),
        [*first.notes, *second.notes],
        [*first.outcomes, *second.outcomes],
        max(first.cost, second.cost),
        second.limit or first.limit,
    )
