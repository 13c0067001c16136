"""What a person sees of a training, and what it is scored on meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from stm_training.data.records import Pair
from stm_training.evaluate.compare import NDCG
from stm_training.evaluate.metrics import mean
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.history import DevScore
from stm_training.finetune.pair_keys import known_positives
from stm_training.finetune.preview import preview_batch
from stm_training.finetune.settings import TrainSettings
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.scoring import score_backbone


def is_first_process() -> bool:
    """Whether this process prints and writes; known before torch.distributed is."""
    return os.environ.get("RANK", "0") == "0"


def dev_score(backbone: Backbone, dev: Sequence[Problem], guards: Sequence[Problem]) -> DevScore:
    """Score a model in training; every development collection weighs the same."""
    found = {problem.name: score_backbone(backbone, problem)[NDCG] for problem in dev}
    queries = {
        query if len(found) == 1 else f"{name}/{query}": value
        for name, scores in found.items()
        for query, value in scores.items()
    }
    general = {guard.name: mean(score_backbone(backbone, guard)[NDCG]) for guard in guards}
    return DevScore(sum(map(mean, found.values())) / len(found), general, queries)


class Told(TrainerCallback):  # type: ignore[misc]
    """Lines that stay on the console: the first batch, and what came of each scoring.

    Args:
        pairs: The training rows.
        settings: Of the training.
        console: Where to; the lines hold the user's texts.
        rows: Rows of the first batch to show.
    """

    def __init__(
        self, pairs: Sequence[Pair], settings: TrainSettings, console: RunConsole, *, rows: int = 2
    ) -> None:
        self._pairs = pairs
        self._settings = settings
        self._console = console
        self._rows = rows
        self._step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the first batch as the model sees it, or say where the training goes on."""
        self._step = state.global_step
        if not is_first_process():
            return
        if self._step > 0:
            self._console.detail(f"    Going on from the checkpoint of step {self._step}")
            return
        batch = next(iter(kwargs["train_dataloader"].batch_sampler))
        known = known_positives(self._pairs)
        pairs = [self._pairs[row] for row in batch]
        for line in preview_batch(kwargs["model"], pairs, self._settings, rows=self._rows, known=known):
            self._console.detail(line)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the step for the next scoring."""
        self._step = state.global_step

    def telling(self, score: Callable[[Backbone], DevScore]) -> Callable[[Backbone], DevScore]:
        """The same scoring, told of."""

        def told(backbone: Backbone) -> DevScore:
            now = score(backbone)
            guards = "".join(f", {name} {value:.4f}" for name, value in now.guards.items())
            self._console.detail(f"    step {self._step}: dev nDCG@10 {now.dev:.4f}{guards}")
            return now

        return told
