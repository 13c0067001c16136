"""The whole of benchmarks/quality.py at a size of minutes, away from its results: does everything run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import experts
import merging
import quality_systems
from cells import CellStore
from panel import Panel
from quality_systems import Bench

from stm_training.data.records import Pair
from stm_training.mining.settings import MineSection
from stm_training.pipeline.collections import Problem, judged_and_sample

QUERIES, DOCUMENTS, PAIRS, TRIALS, STEPS = 8, 60, 150, 2, 1


@dataclass
class SmallPanel(Panel):
    """A panel of a few queries and documents per set."""

    @cached_property
    def tests(self) -> dict[str, Problem]:
        """A few of each set."""
        return _cut(super().tests)

    @cached_property
    def dev(self) -> dict[str, Problem]:
        """A few of each set."""
        return _cut(super().dev)

    @cached_property
    def dev_guards(self) -> dict[str, Problem]:
        """A few of each set."""
        return _cut(super().dev_guards)

    def labelled_pairs(self, name: str) -> list[Pair]:
        """The first few."""
        return super().labelled_pairs(name)[:PAIRS]

    @cached_property
    def synthetic_pairs(self) -> list[Pair]:
        """The first few."""
        return super().synthetic_pairs[:PAIRS]


def _cut(problems: Mapping[str, Problem]) -> dict[str, Problem]:
    return {name: _first(problem) for name, problem in problems.items()}


def _first(problem: Problem) -> Problem:
    queries = dict(list(problem.queries.items())[:QUERIES])
    qrels = {query: problem.qrels[query] for query in queries}
    passages = judged_and_sample(problem.passages, qrels, DOCUMENTS, seed=0, keep=set(queries))
    return replace(problem, queries=queries, qrels=qrels, passages=passages)


def shrink(folder: Path, *, full: bool) -> Bench:
    """Make every piece of the benchmark small, and all of its results and models go to ``folder``."""
    small = {"steps": STEPS, "batch_size": 16}
    for name, settings in experts.EXPERTS.items():
        experts.EXPERTS[name] = settings.model_copy(update=small)
    experts.STORE = _moved(experts.STORE, folder)
    experts.ADAPTERS = folder / "adapters"
    merging.STORE = _moved(merging.STORE, folder)
    merging.TRIALS, merging.POOL, merging.SHARES = TRIALS, 4, merging.SHARES[:TRIALS]
    # So few texts hold no five nearest to leave out and hardly a score in the band.
    quality_systems.REFINE_MINING = MineSection(preset="margin")
    return Bench(
        full=full,
        panel=SmallPanel(dev_documents=DOCUMENTS),
        full_tests=lambda: SmallPanel(full=True, dev_documents=DOCUMENTS, full_guards=True),
        folder=folder / "results" / "quality",
        work=folder / "work",
    )


def _moved(store: CellStore, folder: Path) -> CellStore:
    return replace(store, folder=folder / "results" / store.folder.name)
