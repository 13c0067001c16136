"""The pairs on their way through the filters, and the books that are kept about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from stm_retriever.errors import DataError
from stm_training.data.records import Pair
from stm_training.filtering.consistency import Verdict
from stm_training.filtering.result import Progress
from stm_training.synthesize.filters import DropLog

_FEW = 20  # pairs of which any share may be dropped: a handful says nothing about a filter
_REPORT_EVERY = 1000

Problem = Callable[[Pair], tuple[str, str] | None]
"""A pair -> (name of the filter that drops it, the text to show), or ``None``."""


@dataclass
class State:
    """What is left, what was dropped, and how long it took.

    Attributes:
        pairs: What is left.
        spare: Sources that most filters leave alone.
        most_dropped: Largest share of the pairs that one filter may drop.
        progress: Called with (what, done, total).
        drops: Counts and examples by filter.
        seconds: Wall time by filter.
        unchecked: ``<filter>_unchecked``: pairs that a filter could not judge.
    """

    pairs: list[Pair]
    spare: tuple[str, ...]
    most_dropped: float
    progress: Progress
    drops: DropLog = field(default_factory=DropLog)
    seconds: dict[str, float] = field(default_factory=dict)
    unchecked: dict[str, int] = field(default_factory=dict)

    def is_spared(self, pair: Pair) -> bool:
        """Whether people wrote the pair's query."""
        return pair.source in self.spare

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long a filter takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def drop_pairs(self, name: str, problem: Problem, *, spared_too: bool = False) -> None:
        """Ask of each pair, in order, what is wrong with it.

        Raises:
            DataError: If too many are dropped.
        """
        kept: list[Pair] = []
        examples: list[str] = []
        with self.timed(name):
            for done, pair in enumerate(self.pairs, start=1):
                found = problem(pair) if spared_too or not self.is_spared(pair) else None
                if found is None:
                    kept.append(pair)
                else:
                    self.drops.add(found[0], pair.positive_id or "", found[1])
                    examples.append(found[1])
                if done % _REPORT_EVERY == 0 or done == len(self.pairs):
                    self.progress(name, done, len(self.pairs))
        self._replace(name, kept, examples)

    def drop_by_verdict(self, name: str, judge: Callable[[Sequence[Pair]], list[Verdict]]) -> None:
        """Judge all pairs that are not spared together.

        Raises:
            DataError: If too many are dropped.
        """
        with self.timed(name):
            places = [place for place, pair in enumerate(self.pairs) if not self.is_spared(pair)]
            verdicts = judge([self.pairs[place] for place in places]) if places else []
        dropped = {place for place, verdict in zip(places, verdicts, strict=True) if verdict == "drop"}
        self.unchecked[f"{name}_unchecked"] = verdicts.count("unchecked")
        for place in sorted(dropped):
            self.drops.add(name, self.pairs[place].positive_id or "", self.pairs[place].query)
        kept = [pair for place, pair in enumerate(self.pairs) if place not in dropped]
        self._replace(name, kept, [self.pairs[place].query for place in sorted(dropped)])

    def _replace(self, name: str, kept: list[Pair], examples: Sequence[str]) -> None:
        before = len(self.pairs)
        if before >= _FEW and before - len(kept) > self.most_dropped * before:
            shown = "\n".join(f"  {text}" for text in examples[:3])
            message = (
                f"The filter {name!r} dropped {before - len(kept)} of {before} pairs, more than "
                f"{self.most_dropped:.0%} (filters: most_dropped). It hardly fits these texts. Among what it "
                f"dropped:\n{shown}\nSwitch it off or loosen it in the recipe's filters, or look at what "
                "wrote the queries."
            )
            raise DataError(message)
        self.pairs = kept
