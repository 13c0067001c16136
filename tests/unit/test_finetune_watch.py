"""Watching a training with the real Trainer: best weights, patience, guards, kills, and several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stm_retriever.errors import TrainingError
from stm_training.finetune.history import DEV, DevScore
from stm_training.finetune.watch import BEST, DevWatch

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(Exception):
    """Stands for a kill: leaves the training loop at the end of a step."""


class Walker(nn.Module):
    """One weight that each optimiser step moves up by about the learning rate; a frozen one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": -(self.place * self.dropout(x).mean()).sum()}


class Scripted:
    """Scores by how often it was asked; remembers the weights that it saw."""

    def __init__(self, dev: Mapping[int, float] | Sequence[float], guard: Sequence[float] = ()) -> None:
        self.dev = list(dev.values()) if isinstance(dev, Mapping) else list(dev)
        self.guard = list(guard)
        self.seen: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def __call__(self, model: Any) -> DevScore:
        number = len(self.seen)
        self.seen.append(model.place.detach().clone())
        self.modes.append(model.training)
        model.eval()
        torch.rand(3)  # a score may draw numbers; the training shall not notice
        guards = {"general": self.guard[number]} if self.guard else {}
        return DevScore(self.dev[number], guards, {"q": self.dev[number]})


class ByPlace:
    """Scores by where the weights are, so that a resumed training is scored as an uninterrupted one."""

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.calls = 0

    def __call__(self, model: Any) -> DevScore:
        self.calls += 1
        return DevScore(1.0 - abs(float(model.place[0].detach()) - self.peak))


class StepLoss(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history.append({"step": state.global_step, "step_loss": 1.0})


class KillAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def walk(
    folder: Path,
    watch: DevWatch,
    *,
    steps: int = 12,
    save_steps: int | None = None,
    kill_at: int | None = None,
    resume: bool = False,
) -> Trainer:
    """Train for a while; with ``resume`` from the newest checkpoint there."""
    torch.manual_seed(0)
    rows = [{"x": torch.ones(4)} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or 1,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model=Walker(), args=arguments, train_dataset=rows, callbacks=[StepLoss(), watch, KillAt(kill_at)]
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = None
    if resume:
        found = (folder / "checkpoints").glob("checkpoint-*")
        checkpoint = str(max(found, key=lambda path: int(path.name.rpartition("-")[2])))
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def steps_of(watch: DevWatch) -> list[int]:
    return [one.step for one in watch.evaluations]


def kept(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in (folder / BEST).iterdir())


def test_it_scores_before_the_first_step_every_few_and_after_the_last(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1] * 9), eval_steps=5, out_dir=tmp_path)
    trainer = walk(tmp_path, watch)
    assert steps_of(watch) == [0, 5, 10, 12]
    entries = [entry for entry in trainer.state.log_history if DEV in entry]
    assert entries[0] == {"step": 0, DEV: 0.1, "guards": {}, "queries": {"q": 0.1}}


def test_the_last_step_is_scored_once(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1] * 9), eval_steps=6, out_dir=tmp_path)
    walk(tmp_path, watch)
    assert steps_of(watch) == [0, 6, 12]


def test_without_eval_steps_only_the_ends_are_scored(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1] * 9), eval_steps=None, out_dir=tmp_path)
    walk(tmp_path, watch)
    assert steps_of(watch) == [0, 12]


def test_the_best_weights_come_back(tmp_path: Path) -> None:
    score = Scripted([0.1, 0.5, 0.9, 0.7])
    watch = DevWatch(score, eval_steps=4, out_dir=tmp_path)
    trainer = walk(tmp_path, watch)
    assert watch.best_step == 8
    assert torch.equal(trainer.model.place, score.seen[3])
    assert watch.restore_best(trainer.model) == 8
    assert torch.equal(trainer.model.place, score.seen[2])
    assert torch.equal(trainer.model.frozen, torch.ones(2))
    assert kept(tmp_path) == [8]
    watch.clear()
    assert not (tmp_path / BEST).exists()


def test_where_nothing_is_better_the_weights_before_training_come_back(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.9, 0.5, 0.5, 0.5]), eval_steps=4, out_dir=tmp_path)
    trainer = walk(tmp_path, watch)
    assert watch.restore_best(trainer.model) == 0
    assert torch.equal(trainer.model.place, torch.zeros(3))


def test_what_loses_too_much_on_a_guard_is_recorded_and_never_the_best(tmp_path: Path) -> None:
    score = Scripted([0.1, 0.5, 0.9, 0.8], guard=[0.5, 0.496, 0.49, 0.48])
    watch = DevWatch(score, eval_steps=4, max_guard_loss=0.5, out_dir=tmp_path)
    trainer = walk(tmp_path, watch)
    assert watch.best_step == 4
    assert watch.standing.refused == (8, 12)
    assert [entry["guards"] for entry in trainer.state.log_history if DEV in entry][2] == {"general": 0.49}


def test_it_stops_when_patience_runs_out(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1, 0.5, 0.4, 0.4, 0.9]), eval_steps=2, patience=2, out_dir=tmp_path)
    trainer = walk(tmp_path, watch)
    assert steps_of(watch) == [0, 2, 4, 6]
    assert trainer.state.global_step == 6
    assert watch.best_step == 2


def test_a_better_score_starts_patience_anew(tmp_path: Path) -> None:
    watch = DevWatch(
        Scripted([0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0]), eval_steps=2, patience=2, out_dir=tmp_path
    )
    assert walk(tmp_path, watch).state.global_step == 12


def test_a_watched_training_has_the_weights_of_an_unwatched_one(tmp_path: Path) -> None:
    score = Scripted([0.1] * 20)
    often = walk(tmp_path / "a", DevWatch(score, eval_steps=1, out_dir=tmp_path / "a"))
    seldom = walk(tmp_path / "b", DevWatch(Scripted([0.1] * 3), eval_steps=None, out_dir=tmp_path / "b"))
    assert torch.equal(often.model.place, seldom.model.place)
    assert score.modes[1:-1] == [True] * 11  # training mode was put back after each


def test_only_the_start_and_the_best_keep_the_score_of_each_query(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1, 0.5, 0.9, 0.7]), eval_steps=4, out_dir=tmp_path)
    history = walk(tmp_path, watch).state.log_history
    assert [entry["step"] for entry in history if "queries" in entry] == [0, 8]


# The walker's place is about 0.1 times the step: a peak at 0.6 is best at step 6.
@pytest.mark.parametrize(("peak", "best", "ends"), [(0.6, 6, 10), (2.0, 12, 12)])
@pytest.mark.parametrize("kill_at", [1, 3, 4, 5, 7, 8, 9, 10])
def test_a_killed_training_decides_as_an_uninterrupted_one(
    tmp_path: Path, peak: float, best: int, ends: int, kill_at: int
) -> None:
    def watch(name: str) -> DevWatch:
        return DevWatch(ByPlace(peak), eval_steps=2, patience=2, out_dir=tmp_path / name)

    whole, killed, resumed = watch("whole"), watch("killed"), watch("killed")
    expected = walk(tmp_path / "whole", whole, save_steps=3)
    with pytest.raises(Killed):
        walk(tmp_path / "killed", killed, save_steps=3, kill_at=kill_at)
    again = walk(tmp_path / "killed", resumed, save_steps=3, resume=kill_at > 3)
    assert resumed.best_step == whole.best_step == best
    assert resumed.evaluations == whole.evaluations
    assert whole.evaluations[-1].step == ends
    resumed.restore_best(again.model)
    whole.restore_best(expected.model)
    assert torch.equal(again.model.place, expected.model.place)


def test_a_kill_after_patience_ran_out_changes_nothing(tmp_path: Path) -> None:
    """The checkpoint of the very step that ended training: transformers would go on from it."""

    class KillAtTheEnd(DevWatch):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            raise Killed

    def options(name: str) -> dict[str, Any]:
        return {"eval_steps": 2, "patience": 2, "out_dir": tmp_path / name}

    whole = DevWatch(ByPlace(0.6), **options("whole"))
    expected = walk(tmp_path / "whole", whole, save_steps=10, steps=20)
    assert expected.state.global_step == 10
    with pytest.raises(Killed):
        walk(tmp_path / "cut", KillAtTheEnd(ByPlace(0.6), **options("cut")), save_steps=10, steps=20)
    resumed = DevWatch(ByPlace(0.6), **options("cut"))
    again = walk(tmp_path / "cut", resumed, save_steps=10, steps=20, resume=True)
    assert resumed.evaluations == whole.evaluations
    assert [entry for entry in again.state.log_history if "step_loss" in entry] == [
        entry for entry in expected.state.log_history if "step_loss" in entry
    ]
    assert resumed.restore_best(again.model) == 6


def test_an_earlier_checkpoint_still_finds_its_best_weights(tmp_path: Path) -> None:
    """The newest checkpoint may be broken by the kill; the one before it had another best."""
    watch = DevWatch(ByPlace(5.0), eval_steps=1, out_dir=tmp_path)  # every step is better
    with pytest.raises(Killed):
        walk(tmp_path, watch, save_steps=3, kill_at=11)
    assert kept(tmp_path) == [6, 9, 11]
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-9")
    resumed = DevWatch(ByPlace(-10.0), eval_steps=1, out_dir=tmp_path)  # and later ones are not
    again = walk(tmp_path, resumed, save_steps=3, resume=True)
    assert resumed.restore_best(again.model) == 6


def test_weights_of_another_training_are_not_taken_up(tmp_path: Path) -> None:
    walk(tmp_path, DevWatch(Scripted([0.1, 0.9, 0.1]), eval_steps=6, out_dir=tmp_path))
    assert kept(tmp_path) == [6]
    walk(tmp_path, DevWatch(Scripted([0.9, 0.1, 0.1]), eval_steps=6, out_dir=tmp_path))
    assert kept(tmp_path) == [0]


def test_lost_best_weights_are_an_error_before_any_step(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        walk(tmp_path, DevWatch(ByPlace(0.6), eval_steps=2, out_dir=tmp_path), save_steps=3, kill_at=4)
    shutil.rmtree(tmp_path / BEST)
    with pytest.raises(TrainingError, match=r"best weights so far.*are gone.*start again"):
        walk(tmp_path, DevWatch(ByPlace(0.6), eval_steps=2, out_dir=tmp_path), save_steps=3, resume=True)


def test_a_checkpoint_that_was_not_watched_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        walk(tmp_path, DevWatch(ByPlace(0.6), eval_steps=2, out_dir=tmp_path), save_steps=3, kill_at=4)
    path = tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    state["log_history"] = [entry for entry in state["log_history"] if DEV not in entry]
    path.write_text(json.dumps(state))
    with pytest.raises(TrainingError, match="holds no score of the model before training"):
        walk(tmp_path, DevWatch(ByPlace(0.6), eval_steps=2, out_dir=tmp_path), save_steps=3, resume=True)


def test_a_score_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([0.1, float("nan")]), eval_steps=4, out_dir=tmp_path)
    with pytest.raises(TrainingError, match="scores nan at step 4"):
        walk(tmp_path, watch)


def test_restoring_before_any_evaluation_is_an_error(tmp_path: Path) -> None:
    watch = DevWatch(Scripted([]), eval_steps=4, out_dir=tmp_path)
    with pytest.raises(TrainingError, match="no best weights"):
        watch.restore_best(Walker())  # type: ignore[arg-type]


PROCESS = """
import sys, pathlib, torch
sys.path.insert(0, {root!r})
from tests.unit.test_finetune_watch import Walker, walk
from stm_training.finetune.history import DevScore
from stm_training.finetune.watch import DevWatch
torch.set_num_threads(1)
folder, failing = pathlib.Path(sys.argv[1]), sys.argv[2] == "failing"
rank = int(__import__("os").environ["RANK"])
calls = []

def score(model):
    calls.append(1)
    if failing and len(calls) == 2:
        raise ValueError("no such collection")
    return DevScore([0.1, 0.5, 0.2, 0.2][len(calls) - 1], {{"g": 0.5}})

watch = DevWatch(score, eval_steps=2, patience=2, max_guard_loss=0.5, out_dir=folder)
trainer = walk(folder, watch)
with torch.no_grad():
    trainer.model.place.fill_(100.0 + rank)
best = watch.restore_best(trainer.model)
print("RESULT", rank, len(calls), trainer.state.global_step, best, trainer.model.place.tolist(), flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def run_two(folder: Path, how: str) -> list[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.format(root=root), str(folder), how],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_of_two_processes_one_scores_both_stop_and_both_get_the_best_weights(tmp_path: Path) -> None:
    results = run_two(tmp_path, "well")
    assert [code for code, _ in results] == [0, 0], results
    told = [next(line for line in out.splitlines() if line.startswith("RESULT")) for _, out in results]
    first, second = (line.split(maxsplit=5)[1:] for line in told)
    assert first[:2] == ["0", "4"]  # rank 0 scored at steps 0, 2, 4 and 6
    assert second[:2] == ["1", "0"]
    assert first[2:4] == second[2:4] == ["6", "2"]
    assert first[4] == second[4]
    assert "100" not in first[4]
    assert kept(tmp_path) == [2]


@pytest.mark.slow
def test_an_error_of_the_scoring_process_ends_the_other_too(tmp_path: Path) -> None:
    results = run_two(tmp_path, "failing")
    assert all(code != 0 for code, _ in results)
    assert "ValueError: no such collection" in results[0][1]
    assert "The first process stopped: ValueError: no such collection" in results[1][1]


def test_only_the_trained_weights_are_kept(tmp_path: Path) -> None:
    walk(tmp_path, DevWatch(Scripted([0.1, 0.9, 0.1]), eval_steps=6, out_dir=tmp_path))
    [path] = (tmp_path / BEST).iterdir()
    assert list(load_file(path)) == ["place"]
