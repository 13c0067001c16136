"""Which MTEB tasks a name stands for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from mteb import get_benchmark, get_task
from mteb.abstasks import AbsTask

from stm_retriever.errors import ConfigError

PAPER, MEDICAL = "stm-paper", "medical"
_MEDICAL_BENCHMARK = "MTEB(Medical, v1)"


@dataclass(frozen=True)
class PaperTask:
    """One of the 12 tasks of the STM paper.

    Attributes:
        name: Of the task in mteb.
        group: ``"medical"`` or ``"general"``, the paper's two means.
        subsets: Of a task in several languages, those that the paper uses; empty for all.
        splits: The splits, where mteb has more than one; empty for all.
    """

    name: str
    group: str
    subsets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


PAPER_TASKS: tuple[PaperTask, ...] = (
    PaperTask("FeedbackQARetrieval", "medical"),
    PaperTask("MedicalQARetrieval", "medical"),
    # mteb has a split per medical field and one of all; the paper gives one figure, we read it as that of all
    PaperTask("CUREv1", "medical", subsets=("en",), splits=("all",)),
    PaperTask("PublicHealthQA", "medical", subsets=("english",)),
    PaperTask("NFCorpus", "medical"),
    PaperTask("TRECCOVID", "medical"),
    PaperTask("SciFact", "medical"),
    PaperTask("SCIDOCS", "general"),
    PaperTask("NanoFEVERRetrieval", "general"),
    PaperTask("ArguAna", "general"),
    PaperTask("NanoQuoraRetrieval", "general"),
    PaperTask("FiQA2018", "general"),
)


def known_tasks(names: Sequence[str]) -> tuple[list[AbsTask], list[str]]:
    """The tasks that some names stand for.

    Args:
        names: ``stm-paper``, ``medical``, or names of mteb's tasks.

    Returns:
        The tasks in order, each once, and the names that mteb does not know.
    """
    tasks: dict[str, AbsTask] = {}
    unknown = []
    for name in dict.fromkeys(names):
        found = _group(name)
        if found is None:
            unknown.append(name)
        for task in found or ():
            tasks.setdefault(task.metadata.name, task)
    return list(tasks.values()), unknown


def unknown_task(name: str) -> ConfigError:
    """What to tell about a name that nothing is known by."""
    close = difflib.get_close_matches(name, [PAPER, MEDICAL, *(one.name for one in PAPER_TASKS)], n=3)
    return ConfigError(
        f"mteb has no task {name!r}, and no folder of that name was given with --data. "
        f"{'Did you mean ' + ' or '.join(close) + '? ' if close else ''}"
        f"Groups are {PAPER} and {MEDICAL}; for your own collection give its folder's parent with --data."
    )


def _group(name: str) -> list[AbsTask] | None:
    if name == PAPER:
        return [_paper_task(one) for one in PAPER_TASKS]
    if name == MEDICAL:
        return list(get_benchmark(_MEDICAL_BENCHMARK).tasks)
    paper = {one.name: one for one in PAPER_TASKS}
    if name in paper:
        return [_paper_task(paper[name])]
    try:
        return [get_task(name)]
    except KeyError:
        return None


def _paper_task(one: PaperTask) -> AbsTask:
    return get_task(one.name, hf_subsets=list(one.subsets) or None, eval_splits=list(one.splits) or None)
