"""Watch a training on development queries: keep the best weights, stop when they no longer improve."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from stm_retriever.errors import StmError, TrainingError
from stm_training.data.whole_files import whole_file
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.history import DEV, DevScore, Evaluation, Standing, evaluations, standing
from stm_training.finetune.lora import adapter_state, load_adapter_state
from stm_training.finetune.processes import from_first, is_first, is_sharded, put_from_first, several, whole

Score = Callable[[Backbone], DevScore]
"""Scores the model in training on development queries and guards."""

BEST = "best"


class DevWatch(TrainerCallback):  # type: ignore[misc]
    """Scores at step 0, every ``eval_steps`` and at the end, and keeps the best weights on disk.

    Every decision is read from the log history, which a checkpoint carries. A run that was killed therefore
    decides as an uninterrupted one: evaluations after the checkpoint are forgotten and made again, and the
    weights that were best at each checkpoint still on disk are kept beside the newest best.

    In several processes the first one scores (all of them where the weights are sharded, since a forward
    pass needs every one), and all decide on its figures.

    Args:
        score: Called with the model; its training mode and torch's random state are put back afterwards.
        eval_steps: Optimiser steps between evaluations; ``None``: only before the first and after the last.
        patience: Stop after so many evaluations without a better one; ``None``: never.
        max_guard_loss: Weights that lose more on a guard against step 0 are never the best, in nDCG@10
            points (0-100); ``None``: guards are only recorded.
        out_dir: Gets ``best/`` with the weights; :meth:`clear` removes it.

    Attributes:
        evaluations: All so far, those before a resume included, in the order of their steps.
    """

    def __init__(
        self,
        score: Score,
        *,
        eval_steps: int | None,
        patience: int | None = None,
        max_guard_loss: float | None = None,
        out_dir: Path,
    ) -> None:
        self._score = score
        self._eval_steps = eval_steps
        self._patience = patience
        self._max_guard_loss = max_guard_loss
        self._folder = out_dir / BEST
        self.evaluations: list[Evaluation] = []

    @property
    def standing(self) -> Standing:
        """The best evaluation, and how many came since."""
        return standing(self.evaluations, self._max_guard_loss)

    @property
    def best_step(self) -> int | None:
        """The step of the weights that are kept; 0: those before training. ``None`` before any evaluation."""
        best = self.standing.best
        return None if best is None else best.step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the model before training, or take up what a checkpoint's history says."""
        self.evaluations = evaluations(state.log_history)
        if state.global_step == 0:
            if is_first():
                shutil.rmtree(self._folder, ignore_errors=True)
            self._evaluate(args, state, control, kwargs["model"])
            return
        self._check_resumed(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score where it is time to, and stop where patience has run out."""
        if self.standing.exhausted(self._patience):
            # Patience ran out before a kill. transformers takes one step before it asks whether to stop;
            # on_train_end forgets it.
            control.should_training_stop = True
        elif self._eval_steps is not None and state.global_step % self._eval_steps == 0:
            self._evaluate(args, state, control, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop weights that no checkpoint needs any more."""
        self._prune(Path(args.output_dir))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the last weights, unless they were or training had stopped before."""
        last = self.evaluations[-1].step
        if self.standing.exhausted(self._patience):
            state.log_history[:] = [entry for entry in state.log_history if entry["step"] <= last]
        elif last != state.global_step:
            self._evaluate(args, state, control, kwargs["model"])

    def restore_best(self, backbone: Backbone) -> int:
        """Put the best weights back into the model, in every process.

        Args:
            backbone: The trained model, with the same trainable weights.

        Returns:
            The step that they are of; 0: nothing was better than the model before training.

        Raises:
            TrainingError: If nothing was scored, or the kept weights are gone.
        """
        best = self.best_step
        if best is None:
            raise TrainingError("No evaluation was made, so there are no best weights. Train first.")
        path = self._weights(best)
        values = None
        with _told_to_all():
            if is_first():
                try:
                    values = load_file(path)
                except (OSError, SafetensorError) as error:
                    message = f"The best weights, of step {best}, cannot be read: {error}. {_START_AGAIN}"
                    raise TrainingError(message) from error
        if several():
            put_from_first(adapter_state(backbone), values)
        elif values is not None:
            load_adapter_state(backbone, values)
        return best

    def clear(self) -> None:
        """Remove the kept weights; for when the result is written."""
        if is_first():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _evaluate(self, args: Any, state: Any, control: Any, model: Backbone) -> None:
        before = self.best_step
        record = self._measure(model, state.global_step)
        state.log_history.append(record)
        self.evaluations = evaluations(state.log_history)
        best = self.best_step
        if best != before:
            self._keep_weights(model, state.global_step)
        for entry in state.log_history:
            if DEV in entry and entry["step"] not in (0, best):
                entry.pop("queries", None)  # checkpoints would grow with every evaluation
        self._prune(Path(args.output_dir))
        if self.standing.exhausted(self._patience):
            control.should_training_stop = True

    def _measure(self, model: Backbone, step: int) -> dict[str, Any]:
        record: dict[str, Any] = {}
        with _told_to_all():
            if is_first() or is_sharded(model):
                with _as_it_was(model):
                    score = self._score(model)
                record = score.record(step)
                self._check_score(score, step)
        shared: dict[str, Any] = from_first(record)
        return shared

    def _check_score(self, score: DevScore, step: int) -> None:
        broken = [value for value in (score.dev, *score.guards.values()) if not math.isfinite(value)]
        if broken:
            message = (
                f"The model scores {broken[0]} at step {step}, so nothing can be chosen by it. Look for NaN "
                f"in its weights, or lower the learning rate."
            )
            raise TrainingError(message)
        first = self.evaluations[0].score if self.evaluations else score
        if set(first.guards) != set(score.guards):
            message = (
                f"At step {step} the guards are {sorted(score.guards)}, at step 0 {sorted(first.guards)}, so "
                f"no loss can be told. Score the same guards each time."
            )
            raise TrainingError(message)

    def _keep_weights(self, model: Backbone, step: int) -> None:
        # Every process must ask for a sharded weight, also those that do not write it.
        values = {name: whole(value) for name, value in sorted(adapter_state(model).items())}
        with _told_to_all():
            if is_first():
                with whole_file(self._weights(step)) as partial:
                    save_file(values, partial)

    def _prune(self, checkpoints: Path) -> None:
        if not is_first() or not self._folder.is_dir():
            return
        steps = [int(path.name.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*")]
        needed = {self.best_step}
        for step in steps:
            then = standing([one for one in self.evaluations if one.step <= step], self._max_guard_loss)
            needed.add(None if then.best is None else then.best.step)
        kept = {self._weights(step) for step in needed if step is not None}
        for path in self._folder.iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)

    def _check_resumed(self, step: int) -> None:
        evaluated = self.evaluations
        if not evaluated or evaluated[0].step != 0:
            message = (
                f"The checkpoint of step {step} holds no score of the model before training, so no gain or "
                f"loss can be told: that run was not watched. {_START_AGAIN}"
            )
            raise TrainingError(message)
        best = self.best_step
        there = best is not None and self._weights(best).is_file()
        if not from_first(there):
            message = f"The best weights so far, {self._weights(best or 0)}, are gone. {_START_AGAIN}"
            raise TrainingError(message)

    def _weights(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"


_START_AGAIN = "Remove the training's folder and start again."


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the training mode and torch's random state back: a watched training is the same as another."""
    was_training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _told_to_all() -> Iterator[None]:
    """Let an error of the first process end the others too; they would wait for it until a timeout."""
    if not several():
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except (StmError, OSError, RuntimeError, ValueError) as error:
        failure = error
    told = from_first(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if told is not None:
        message = f"The first process stopped: {told}"
        raise TrainingError(message)
