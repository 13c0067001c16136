"""Run a model on tasks, with results as mteb writes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks import AbsTask
from mteb.results import TaskResult

from stm_retriever.errors import ConfigError, DataError, StmError
from stm_training.data.rows import OnError
from stm_training.mteb.encoder import StmEncoder
from stm_training.mteb.local_data import fill_from_folder, folder_of, task_from_folder
from stm_training.mteb.tasks import PAPER_TASKS, known_tasks, unknown_task

_log = logging.getLogger(__name__)
NDCG = "ndcg_at_10"


@dataclass(frozen=True)
class Planned:
    """A task, and where its data comes from.

    Attributes:
        name: The task's name.
        task: mteb's task; None for a collection that mteb does not know.
        folder: The local copy; None for the hub.
    """

    name: str
    task: AbsTask | None
    folder: Path | None


@dataclass(frozen=True)
class TaskScore:
    """One figure.

    Attributes:
        task: The task's name.
        measure: ``ndcg_at_10`` for retrieval; else the task's main score.
        score: From 0 to 1, the mean over the subsets and splits that were run.
        data: Revision of the data: mteb's, or ``local-`` and a hash.
    """

    task: str
    measure: str
    score: float
    data: str


def plan(names: Sequence[str], data: Path | None) -> list[Planned]:
    """Which tasks are run on which data.

    Args:
        names: Groups, tasks of mteb, or folders below ``data``.
        data: Folder that holds a folder for each task by its name; None to take all from the hub.

    Raises:
        ConfigError: For a name that nothing is known by.
        DataError: If ``data`` is given and lacks a task: nothing is fetched from the hub silently.
    """
    tasks, unknown = known_tasks(names)
    planned = [Planned(task.metadata.name, task, None) for task in tasks]
    if data is None:
        for name in unknown:
            raise unknown_task(name)
        return planned
    if not data.is_dir():
        raise DataError(f"{data} is no folder. Give the folder that holds the tasks' BEIR folders.")
    planned = [Planned(one.name, one.task, folder_of(one.name, data)) for one in planned]
    missing = [one.name for one in planned if one.folder is None]
    if missing:
        there = ", ".join(sorted(folder.name for folder in data.iterdir() if folder.is_dir()))
        raise DataError(
            f"{data} has no folder for {', '.join(missing)}; there are: {there or 'none'}. Put the BEIR "
            "folders there by these names, name fewer tasks, or run without --data to take them from the hub."
        )
    for name in unknown:
        folder = folder_of(name, data)
        if folder is None:
            raise unknown_task(name)
        planned.append(Planned(folder.name, None, folder))
    return planned


def run_tasks(
    encoder: StmEncoder,
    planned: Sequence[Planned],
    results: Path,
    *,
    overwrite: bool = False,
    predictions: bool = False,
    on_error: OnError = "raise",
    show_progress: bool = False,
) -> list[TaskScore]:
    """Evaluate one model; each task's result is written as soon as it is there, and is not run again.

    Args:
        encoder: The model.
        planned: The tasks.
        results: Folder for mteb's results: ``results/<organisation>__<name>/<revision>/<task>.json``.
        overwrite: Run tasks again whose result is there.
        predictions: Also keep the rankings, below ``predictions/``.
        on_error: What a bad row of a local copy does.
        show_progress: Show bars.

    Raises:
        DataError: If a task's data cannot be had.
    """
    cache = mteb.ResultCache(results)
    scores = []
    for one in planned:
        task = _loaded(one, on_error)
        try:
            found = mteb.evaluate(
                encoder,
                task,
                cache=cache,
                overwrite_strategy="always"
                if overwrite or _is_stale(cache, task, encoder)
                else "only-missing",
                prediction_folder=results / "predictions" if predictions else None,
                co2_tracker=False,
                show_progress_bar=show_progress,
                encode_kwargs={"show_progress_bar": show_progress},
            )
        except StmError:
            raise
        except Exception as error:
            if one.folder is not None:
                raise
            raise DataError(
                f"{one.name} could not be run from the hub ({type(error).__name__}: {str(error)[:300]}). "
                "Without a connection, put its data in BEIR layout into a folder and give that: --data FOLDER"
            ) from error
        scores.append(_score(task, found.task_results[0]))
        task.unload_data()
    return scores


def _loaded(one: Planned, on_error: OnError) -> AbsTask:
    if one.folder is None and one.task is not None:
        return one.task
    if one.folder is None:
        raise ConfigError(f"{one.name} is neither a task of mteb nor a folder.")
    if one.task is None:
        return task_from_folder(one.folder, on_error=on_error)
    return fill_from_folder(one.task, one.folder, on_error=on_error)


def _is_stale(cache: mteb.ResultCache, task: AbsTask, encoder: StmEncoder) -> bool:
    """Whether the result that is there is of other data; mteb itself would take it all the same."""
    found = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    return found is not None and found.dataset_revision != task.metadata.dataset["revision"]


def _score(task: AbsTask, result: TaskResult) -> TaskScore:
    measure = NDCG if task.metadata.type == "Retrieval" else task.metadata.main_score
    found = [
        float(row[measure])
        for split in task.eval_splits
        for row in result.scores[split]
        if row["hf_subset"] in task.hf_subsets
    ]
    return TaskScore(
        task.metadata.name, measure, sum(found) / len(found), str(task.metadata.dataset["revision"])
    )


def paper_means(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The paper's three means, each None unless all of its tasks were run.

    Args:
        scores: nDCG@10 by task.
    """
    groups: dict[str, list[str]] = {"medical": [], "general": [], "all": []}
    for one in PAPER_TASKS:
        groups[one.group].append(one.name)
        groups["all"].append(one.name)
    return {
        group: sum(scores[name] for name in names) / len(names) if set(names) <= scores.keys() else None
        for group, names in groups.items()
    }


def figures(scores: Sequence[TaskScore]) -> dict[str, Any]:
    """One model's figures, for JSON."""
    return {one.task: {"measure": one.measure, "score": one.score, "data": one.data} for one in scores}
