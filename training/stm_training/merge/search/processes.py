"""A search by several processes: this one and others of its kind, which only share the storage."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from stm_training.merge.search.evaluator import ModelEvaluator
from stm_training.merge.search.job import SearchJob
from stm_training.merge.search.records import SearchResult
from stm_training.merge.search.study import Progress, search
from stm_training.merge.search.surrogate import Surrogate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a process needs to take part.

    Attributes:
        evaluate: Scores merges with this process's own model.
        surrogate: Predicts scores, where the settings want it.
    """

    evaluate: ModelEvaluator
    surrogate: Surrogate | None = None


MakeWork = Callable[[], AbstractContextManager[Work]]
"""Loads a process's model; a function of a module (or a partial of one), since new processes import it."""


def search_in_processes(
    job: SearchJob, make_work: MakeWork, progress: Progress | None = None
) -> SearchResult:
    """Run a search in ``settings.processes`` processes, this one included.

    A process that dies is no loss but of time: the others run its trial again. Each process holds a model
    and, if wanted, a surrogate; sharing the cores among them is up to ``make_work``.

    Args:
        job: What to search.
        make_work: Called once in every process.
        progress: Called after each trial of this process.

    Returns:
        All trials.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    helpers = [
        context.Process(target=_help, args=(job, make_work), daemon=True)
        for _ in range(job.settings.processes - 1)
    ]
    for helper in helpers:
        helper.start()
    try:
        with make_work() as work:
            result = search(job, work.evaluate, surrogate=work.surrogate, progress=progress)
        for helper in helpers:
            helper.join()
    finally:
        for helper in helpers:
            helper.terminate()
    failed = [helper.exitcode for helper in helpers if helper.exitcode]
    if failed:
        _log.warning(
            "%d of %d helper processes of the search ended with an error (exit codes %s); the others ran "
            "their trials. Look for lack of memory: every process holds a model.",
            len(failed),
            len(helpers),
            failed,
        )
    return result


def _help(job: SearchJob, make_work: MakeWork) -> None:
    with make_work() as work:
        search(job, work.evaluate, surrogate=work.surrogate)
