"""A training's figures for TensorBoard: event files on this machine's disk, nothing over a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from stm_retriever.errors import require
from stm_training.finetune.history import DEV, tokens_per_second

FOLDER = "tensorboard"


class TensorBoard(TrainerCallback):  # type: ignore[misc]
    """Writes loss, learning rate, tokens/s, development score and guards of each step.

    A resumed training goes on in the same folder; what an earlier process wrote after the checkpoint is
    purged by TensorBoard when it reads the files. The caller closes it.

    Args:
        folder: Where the event files go.

    Raises:
        MissingExtraError: If tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._package = require("tensorboardX", extra="train", purpose="TensorBoard's files")
        self._writer: Any = None
        self._read = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the files; only the first process does."""
        if not state.is_world_process_zero:
            return
        resumed = state.global_step > 0
        self._read = len(state.log_history) if resumed else 0
        self._writer = self._package.SummaryWriter(
            str(self._folder), purge_step=state.global_step + 1 if resumed else None
        )
        self.write(state.log_history)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is new."""
        self.write(state.log_history)

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write those records of a log history that are new: the last scoring comes after the last step."""
        if self._writer is None:
            return
        # An early stop may have shortened the history; what it dropped was written before.
        for entry in history[self._read :]:
            for name, value in _scalars(entry).items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, int(entry["step"]))
        self._read = len(history)


def _scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    if "step_loss" in entry:
        values["train/loss"] = float(entry["step_loss"])
        values["train/learning_rate"] = float(entry.get("learning_rate", "nan"))
        values["train/tokens_per_second"] = tokens_per_second(entry)
    if DEV in entry:
        values["dev/ndcg_at_10"] = float(entry[DEV])
        values |= {f"guards/{name}": float(value) for name, value in entry["guards"].items()}
    return values
