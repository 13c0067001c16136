"""The contrastive step: encode a batch's texts, contrast them, and leave gradients in the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stm_retriever.errors import DataError, TrainingError
from stm_training.finetune.anchor import AnchorLoss
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.collate import Batch, Collator
from stm_training.finetune.forward_pass import ForwardPass
from stm_training.finetune.gather import Ranks
from stm_training.finetune.gradcache import GradCache, OneGraph
from stm_training.finetune.guide import Guide
from stm_training.finetune.losses import Labels, build_objective
from stm_training.finetune.memory_probe import MemoryPlan
from stm_training.finetune.micro_batches import (
    MicroBatch,
    longest_text,
    padded_tokens,
    real_tokens,
    rows_of,
    texts_of,
)
from stm_training.finetune.settings import TrainSettings

BackwardPass = Callable[..., None]
"""accelerate's ``backward(tensor, gradient=None)``."""


@dataclass(frozen=True)
class Anchor:
    """General texts whose vectors shall stay where the base had them.

    Attributes:
        loss: Draws the texts of a step and measures their distance to the base's vectors.
        texts: All of them, without prompts.
    """

    loss: AnchorLoss
    texts: Sequence[str]


@dataclass(frozen=True)
class StepResult:
    """One step's figures.

    Attributes:
        loss: Of the whole batch, the anchor's term included; float32 scalar without graph.
        anchor_loss: Mean of 1 - cosine of the anchor's texts; ``None`` without anchor.
        tokens: Without padding, over all processes.
        cached: Whether GradCache was used in this process.
    """

    loss: Tensor
    anchor_loss: float | None
    tokens: int
    cached: bool


@dataclass(frozen=True)
class _Texts:
    """All that one step encodes: this process's share, and what is known of the whole."""

    parts: list[MicroBatch]
    total: int
    labels: Labels
    anchor_rows: list[int]


class ContrastiveStep:
    """Gradients of one batch's loss.

    Args:
        backbone: The model in training.
        settings: Loss, precision, GradCache, anchor.
        collator: Cuts texts into micro-batches.
        plan: What may be in memory at once.
        ranks: The processes that share a batch.
        anchor: The regulariser, if there is one.
        guide: Gives the similarities of ``false_negatives: guide``.

    Attributes:
        plan: As given, lowered by :meth:`shrink`.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: TrainSettings,
        *,
        collator: Collator,
        plan: MemoryPlan,
        ranks: Ranks,
        anchor: Anchor | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._backbone: Any = backbone  # Any: sharding adds methods to its class
        self._settings = settings
        self._collator = collator
        self._ranks = ranks
        self._anchor = anchor
        self._guide = guide
        self._encode = ForwardPass(backbone, settings.precision)
        self._objective = build_objective(settings, backbone.dimension)
        self.plan = plan

    def run(self, batch: Batch, step: int, backward: BackwardPass) -> StepResult:
        """Add the gradients of a batch's loss to the weights', the same in every process.

        Args:
            batch: This process's share of the texts, and the labels of all.
            step: Optimiser steps done so far; chooses the anchor's texts.
            backward: Propagates gradients.

        Raises:
            TrainingError: If the loss is not finite; the weights are those of the step before.
            DataError: If a text has no tokens.
        """
        device = self._backbone.device
        with self._ranks.together("tokenising a batch"):
            texts = self._texts(batch, step)
        passes = self._passes(texts.parts, backward)
        with self._ranks.together("encoding a batch", encodes=True):
            own = passes.vectors(texts.parts)
        places = rows_of(texts.parts)
        labels = self._guided(texts, places).to(device)
        vectors = self._ranks.gather(own, places, texts.total)
        with self._ranks.together("computing gradients", encodes=True):
            loss, distance = self._loss(vectors, labels, texts.anchor_rows)
            self._check(loss, step)
            # Sharding takes the mean of the processes' gradients; ours is their sum.
            passes.propagate(loss * self._ranks.size if self._ranks.sharded else loss)
        self._ranks.sum_gradients(value for value in self._backbone.parameters() if value.requires_grad)
        return StepResult(
            loss=loss.detach(),
            anchor_loss=None if distance is None else float(distance.detach()),
            tokens=self._ranks.sum(real_tokens(texts.parts)),
            cached=isinstance(passes, GradCache),
        )

    def shrink(self, batch: Batch, reason: str) -> Batch:
        """Halve the token budget after memory ran out, and cut a batch anew.

        Raises:
            TrainingError: If micro-batches are down to single texts already.
        """
        longest = self._ranks.largest(longest_text(batch["micro_batches"]))
        before = self.plan.token_budget
        if before <= longest:
            message = (
                f"Memory runs out even where the longest text of a batch ({longest} tokens) goes through the "
                f"model alone: {reason} Lower max_length, use adapter 'lora', a smaller base model, or a "
                f"machine with more memory."
            )
            raise TrainingError(message)
        self.plan = MemoryPlan(max(before // 2, longest), graph_tokens=0)
        self._collator.token_budget = self.plan.token_budget
        ids, rows = texts_of(batch["micro_batches"])
        return Batch(
            micro_batches=self._collator.cut(ids, rows), labels=batch["labels"], texts=batch["texts"]
        )

    def _texts(self, batch: Batch, step: int) -> _Texts:
        """The batch's texts and, behind them, the anchor's."""
        parts, total = batch["micro_batches"], batch["texts"]
        anchor_rows: list[int] = []
        if self._anchor is not None:
            anchor_rows = self._anchor.loss.batch(step, self._settings.anchor_batch)
            prompted = self._collator.documents([self._anchor.texts[row] for row in anchor_rows])
            more_ids, more_rows = self._collator.own_ids(prompted, first=total)
            ids, rows = texts_of(parts)
            parts = self._collator.cut([*ids, *more_ids], [*rows, *more_rows])
            total += len(anchor_rows)
        if any(not bool(part["attention_mask"].any(dim=1).all()) for part in parts):
            message = (
                "A text of the batch becomes no token at all, so that it has no vector: the tokenizer knows "
                "none of its characters. Remove such texts from the pairs, or use another base model."
            )
            raise DataError(message)
        return _Texts(parts, total, batch["labels"], anchor_rows)

    def _passes(self, parts: Sequence[MicroBatch], backward: BackwardPass) -> OneGraph | GradCache:
        def propagate(tensor: Tensor, gradient: Tensor | None, last: bool) -> None:
            with nullcontext() if last else self._unsynchronised():
                if gradient is None:
                    backward(tensor)
                else:
                    backward(tensor, gradient=gradient)

        if not self._caches(parts):
            return OneGraph(self._encode, propagate)
        return GradCache(self._encode, propagate, self._backbone.device, repeats=self._repeats(parts))

    def _repeats(self, parts: Sequence[MicroBatch]) -> int:
        """Passes that this process is short of: a sharded one waits for all, so each must run as many."""
        return self._ranks.largest(len(parts)) - len(parts) if self._ranks.sharded else 0

    def _caches(self, parts: Sequence[MicroBatch]) -> bool:
        if self._settings.grad_cache == "on" or self._ranks.sharded or self.plan.graph_tokens == 0:
            return True
        return self._settings.grad_cache == "auto" and padded_tokens(parts) > self.plan.graph_tokens

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Sum a sharded adapter's gradients locally; those of all weights would fill the memory."""
        if self._ranks.sharded and self._settings.adapter == "lora":
            return _Unsynchronised(self._backbone)
        return nullcontext()

    def _guided(self, texts: _Texts, places: Tensor) -> Labels:
        if self._guide is None:
            return texts.labels
        repeats = self._repeats(texts.parts)
        with self._ranks.together("encoding with the guide", encodes=True):
            own = self._guide.vectors(texts.parts, repeats=repeats)
        queries, positives, negatives, _ = self._split(
            self._ranks.gather(own, places, texts.total), texts.labels
        )
        return replace(
            texts.labels, guide_positives=queries @ positives.T, guide_negatives=queries @ negatives.T
        )

    def _loss(
        self, vectors: Tensor, labels: Labels, anchor_rows: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        queries, positives, negatives, anchored = self._split(vectors, labels)
        loss = self._objective(queries, positives, negatives, labels)
        if self._anchor is None:
            return loss, None
        distance = self._anchor.loss.distance(anchored, anchor_rows)
        return loss + self._settings.anchor_weight * distance, distance

    def _split(self, vectors: Tensor, labels: Labels) -> tuple[Tensor, ...]:
        """Queries, positives, hard negatives and anchored texts of all vectors of a step."""
        size, negatives = labels.excluded_negatives.shape
        return torch.split(vectors, [size, size, negatives, len(vectors) - 2 * size - negatives])

    def _check(self, loss: Tensor, step: int) -> None:
        if bool(torch.isfinite(loss)):
            return
        message = (
            f"The loss is {float(loss.detach())} at step {step + 1}, so every later weight would be NaN. "
            f"Lower learning_rate ({self._settings.learning_rate}) or raise temperature "
            f"({self._settings.temperature}), or set precision 'fp32'; look for broken base weights."
        )
        raise TrainingError(message)


class _Unsynchronised(AbstractContextManager[None]):
    """A sharded model whose gradients stay local."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.set_requires_gradient_sync(False)

    def __exit__(self, *exception: object) -> None:
        self._model.set_requires_gradient_sync(True)
