"""A search as a process of its own, for tests that kill it: scores by arithmetic, a little slowly."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.processes import Work
from stm_training.merge.search.records import StopEarly, TrialScores
from stm_training.merge.search.settings import SearchSection
from stm_training.merge.search.study import search

EXPERTS = ("a", "b", "c")


def job(folder: Path, sampler: str, trials: int, processes: int = 1) -> SearchJob:
    settings = SearchSection.model_validate(
        {"methods": ("task_arithmetic", "ties"), "sampler": sampler, "trials": trials, "processes": processes}
    )
    return SearchJob(settings, EXPERTS, folder, "inputs", seed=7)


class Slow:
    """Notes every merge that it begins and ends to score in a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def note(self, event: str, recipe: MergeRecipe | None) -> None:
        line = f"{event} {os.getpid()} {'base' if recipe is None else recipe.model_dump_json()}\n"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def __call__(self, recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        self.note("begin", recipe)
        time.sleep(0.03)
        weights = {} if recipe is None else recipe.weights
        value = 0.5 + sum(0.1 * weight - 0.1 * weight**2 for weight in weights.values())
        self.note("end", recipe)
        queries = {f"q{n}": value for n in range(20)}
        return TrialScores(dev={"d": queries}, part={"d": queries})


@contextmanager
def work(log: Path, together: int) -> Iterator[Work]:
    """Begins when so many processes are there, however long each takes to start."""
    here = log.with_name("here")
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(here.iterdir())) < together and time.monotonic() < until:
        time.sleep(0.01)
    yield Work(Slow(log))


def main(folder: Path, sampler: str, trials: int) -> None:
    search(job(folder, sampler, trials), Slow(folder / "log"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
