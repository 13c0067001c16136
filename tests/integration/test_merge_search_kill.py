"""Searches in processes of their own: killed in the middle, and several at once on one storage."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from stm_training.merge.search.processes import search_in_processes
from stm_training.merge.search.records import SearchResult, recipe_key
from stm_training.merge.search.study import search
from tests.searching_process import Slow, job, work

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, sampler: str, trials: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.searching_process", str(folder), sampler, str(trials)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def events(folder: Path, kind: str) -> list[tuple[str, str]]:
    """(process, merge) of every finished line of the log."""
    path = folder / "log"
    text = path.read_text() if path.exists() else ""
    rows = [line.split(" ", 2) for line in text.splitlines()]
    return [(process, merge) for event, process, merge in rows if event == kind and merge != "base"]


def kill_after(run: subprocess.Popen[bytes], folder: Path, begun: int, wait: float) -> None:
    until = time.monotonic() + 60
    while run.poll() is None and len(events(folder, "begin")) < begun and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(wait)
    assert run.poll() is None, "it ended before it could be killed"
    run.send_signal(signal.SIGKILL)
    run.wait(30)


def merges(result: SearchResult) -> list[str]:
    return [recipe_key(trial.recipe) for trial in result.trials]


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_search_killed_twice_ends_with_its_number_of_trials_and_repeats_only_what_was_under_way(
    tmp_path: Path, sampler: str
) -> None:
    instants = random.Random(5)
    for begun in (4, 9):
        kill_after(start(tmp_path, sampler, 16), tmp_path, begun, instants.random() * 0.05)
    assert start(tmp_path, sampler, 16).wait(120) == 0
    result = search(job(tmp_path, sampler, 16), Slow(tmp_path / "log"))
    assert len(result.trials) == 16
    ended = Counter(merge for _, merge in events(tmp_path, "end"))
    begun_twice = [
        merge for merge, count in Counter(m for _, m in events(tmp_path, "begin")).items() if count > 1
    ]
    assert len(begun_twice) <= 2  # one per kill
    assert sum(ended.values()) - len(ended) <= 2
    study = optuna.load_study(study_name=result.study, storage=f"sqlite:///{result.storage}")
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] + states["PRUNED"] == 16
    assert states["RUNNING"] == 0
    assert states["FAIL"] <= 2
    if sampler == "grid":
        assert len(set(merges(result))) == 16
        undisturbed = search(job(tmp_path / "whole", sampler, 16), Slow(tmp_path / "other.log"))
        assert set(merges(result)) == set(merges(undisturbed))


def test_several_processes_share_one_search_and_no_merge_is_scored_twice(tmp_path: Path) -> None:
    result = search_in_processes(
        job(tmp_path, "grid", 24, processes=3), functools.partial(work, tmp_path / "log", 3)
    )
    assert len(result.trials) == 24
    assert len(set(merges(result))) == 24
    ended = events(tmp_path, "end")
    assert len(ended) == len({merge for _, merge in ended}) == 24
    assert len({process for process, _ in ended}) > 1
    assert not list((tmp_path / "search-owners").iterdir())


def test_a_process_that_joins_takes_over_what_a_killed_one_was_scoring(tmp_path: Path) -> None:
    first = start(tmp_path, "grid", 20)
    kill_after(first, tmp_path, 3, 0.0)
    second, third = start(tmp_path, "grid", 20), start(tmp_path, "grid", 20)
    assert (second.wait(120), third.wait(120)) == (0, 0)
    result = search(job(tmp_path, "grid", 20), Slow(tmp_path / "log"))
    assert len(set(merges(result))) == len(result.trials) == 20
    assert len({merge for _, merge in events(tmp_path, "end")}) == 20
