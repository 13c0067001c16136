"""How strongly each training pair would move the weights: the norm of its own loss's gradient.

A pair's loss depends on the other texts of its batch. Here these are constants: the gradient runs through the
pair's own texts (query, positive, own negatives) and its norm is exact for that. All pairs then cost one pass
without gradients over all texts and one with, about as much as an epoch of training (a third more); the full
gradient, through the others' texts too, would cost a backward pass over the batch for each of its pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stm_retriever.errors import TrainingError
from stm_retriever.tokenization import Ids, token_budget_batches
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.collate import Collator
from stm_training.finetune.losses import Labels, Objective, build_row_objective
from stm_training.finetune.micro_batches import texts_of
from stm_training.finetune.pair_sums import PairSums, lora_layers
from stm_training.finetune.precision import autocast
from stm_training.finetune.settings import TOKEN_BUDGET, TrainSettings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of pairs done and their total."""

_MOST_ELEMENTS = 1 << 26  # of the gradients that are held at a time, 4 bytes each


@dataclass(frozen=True)
class ScoredBatch:
    """Rows that meet in one loss; the first ``scored`` of them get their norm from it."""

    rows: tuple[int, ...]
    scored: int


def gradient_norms(
    backbone: Backbone,
    pairs: Sequence[Pair],
    batches: Sequence[ScoredBatch],
    *,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """The norm of the trainable weights' gradient of each pair's own loss, without dropout.

    Args:
        backbone: With an adapter attached, or with all weights trainable. Its gradients are left as they are.
        pairs: n rows.
        batches: Each row is scored in one of them.
        settings: Loss, hard negatives, precision, token budget. ``false_negatives: guide`` counts as
            ``known``: there is no guide here.
        progress: Called after each batch.

    Returns:
        (n,) float64; 0 for a pair whose loss has nothing to contrast. NaN for rows in no batch.

    Raises:
        TrainingError: If no weight is trainable, or a gradient is not finite.
    """
    if settings.false_negatives == "guide":
        settings = settings.model_copy(update={"false_negatives": "known"})
    work = _Work(backbone, pairs, settings)
    norms = np.full(len(pairs), np.nan)
    was_training = backbone.training
    backbone.eval()
    done = 0
    try:
        for batch in batches:
            found = work.norms(batch)
            norms[list(batch.rows[: batch.scored])] = found
            _check_finite(found, batch, pairs)
            done += batch.scored
            if progress is not None:
                progress(done, len(pairs))
    finally:
        backbone.train(was_training)
    return norms


@dataclass(frozen=True)
class _Texts:
    """A batch's texts: b queries, b positives, then the hard negatives row by row; and whose each is."""

    ids: list[Ids]
    own: list[list[int]]
    labels: Labels


class _Work:
    def __init__(self, backbone: Backbone, pairs: Sequence[Pair], settings: TrainSettings) -> None:
        self._backbone = backbone
        self._pairs = pairs
        self._precision = settings.precision
        self._budget = settings.token_budget or TOKEN_BUDGET
        self._objective: Objective = build_row_objective(settings, backbone.dimension)
        self._collate = Collator(
            backbone,
            pairs,
            hard_negatives=settings.hard_negatives,
            token_budget=self._budget,
            loss=settings.loss,
        )
        self._weights = [weight for weight in backbone.parameters() if weight.requires_grad]
        if not self._weights:
            message = (
                f"No weight of {backbone.spec.source} is trainable, so no pair has a gradient. Attach an "
                f"adapter (attach_lora) or let the weights require gradients."
            )
            raise TrainingError(message)
        self._layers = lora_layers(backbone)
        held = sum(weight.numel() for weight in self._weights)
        self._most_pairs = max(1, _MOST_ELEMENTS // held) if self._layers else 1

    def norms(self, batch: ScoredBatch) -> NDArray[np.float64]:
        """Norms (scored,) of a batch's first rows."""
        texts = self._texts([self._pairs[row] for row in batch.rows])
        wanted = self._vector_gradients(texts, batch.scored)
        norms = np.zeros(batch.scored)
        for rows in self._groups(texts, batch.scored):
            norms[rows] = self._norms([texts.own[row] for row in rows], texts.ids, wanted)
        return norms

    def _texts(self, pairs: Sequence[Pair]) -> _Texts:
        batch = self._collate(pairs)
        labels, rows = batch["labels"], len(pairs)
        ids, places = texts_of(batch["micro_batches"])
        ordered = [row for _, row in sorted(zip(places, ids, strict=True), key=lambda item: item[0])]
        own = [[row, rows + row] for row in range(rows)]
        place = 2 * rows
        for texts, count in zip(own, labels.negative_counts.tolist(), strict=True):
            texts += range(place, place + count)
            place += count
        return _Texts(ordered, own, labels.to(self._backbone.device))

    def _vector_gradients(self, texts: _Texts, scored: int) -> Tensor:
        """(texts, dimension) gradient at each text's vector of the loss of the row that owns it."""
        with torch.no_grad():
            vectors = torch.empty(len(texts.ids), self._backbone.dimension, device=self._backbone.device)
            for places in token_budget_batches([len(ids) for ids in texts.ids], self._budget):
                vectors[places] = self._encode([texts.ids[place] for place in places])
        vectors.requires_grad_()
        size = len(texts.own)
        parts = vectors[:size], vectors[size : 2 * size], vectors[2 * size :]
        losses = self._objective(*parts, texts.labels)
        wanted = torch.zeros_like(vectors)
        for row in range(scored):
            (gradient,) = torch.autograd.grad(losses[row], vectors, retain_graph=True)
            wanted[texts.own[row]] = gradient[texts.own[row]]
        return wanted

    def _groups(self, texts: _Texts, scored: int) -> Iterator[list[int]]:
        """Rows to be encoded together, all texts of each: like in length, within the token budget."""
        longest = [max(len(texts.ids[place]) for place in own) for own in texts.own[:scored]]
        group: list[int] = []
        count = 0
        for row in sorted(range(scored), key=lambda row: (-longest[row], row)):
            tokens = (count + len(texts.own[row])) * longest[group[0] if group else row]
            if group and (tokens > self._budget or len(group) == self._most_pairs):
                yield group
                group, count = [], 0
            group.append(row)
            count += len(texts.own[row])
        if group:
            yield group

    def _norms(self, own: Sequence[list[int]], ids: list[Ids], wanted: Tensor) -> NDArray[np.float64]:
        """Norms (pairs,) of the gradients that each pair's vectors hand down to the weights."""
        if self._layers:
            owner = [number for number, places in enumerate(own) for _ in places]
            with PairSums(self._layers, torch.tensor(owner, device=wanted.device), len(own)) as sums:
                gradients = self._gradients([place for places in own for place in places], ids, wanted)
            if sums.explain(self._weights, gradients):
                return sums.norms()
            logger.warning("This model's gradients cannot be told apart by pair; pairs are done one by one.")
            self._layers, self._most_pairs = [], 1
        return np.array([_norm(self._gradients(places, ids, wanted)) for places in own])

    def _gradients(self, places: list[int], ids: list[Ids], wanted: Tensor) -> tuple[Tensor | None, ...]:
        """The weights' gradients, summed over some texts; what the weights carry is left as it is."""
        pulled = (self._encode([ids[place] for place in places]) * wanted[places]).sum()
        return torch.autograd.grad(pulled, self._weights, allow_unused=True)

    def _encode(self, ids: list[Ids]) -> Tensor:
        device = self._backbone.device
        input_ids, mask = (torch.from_numpy(part).to(device) for part in self._backbone.tokenizer.pad(ids))
        with autocast(device, self._precision):
            vectors: Tensor = self._backbone(input_ids, mask)[1]
        return vectors.float()


def _norm(gradients: Sequence[Tensor | None]) -> float:
    squares = [float(gradient.double().square().sum()) for gradient in gradients if gradient is not None]
    return math.sqrt(sum(squares))


def _check_finite(norms: NDArray[np.float64], batch: ScoredBatch, pairs: Sequence[Pair]) -> None:
    odd = np.flatnonzero(~np.isfinite(norms))
    if len(odd):
        row = batch.rows[int(odd[0])]
        message = (
            f"The gradient of pair {row + 1} (query {pairs[row].query[:60]!r}) is {norms[odd[0]]}, so pairs "
            f"cannot be ranked. The probe training has diverged, or precision is too low: train it anew with "
            f"a lower learning_rate, or set precision 'fp32'."
        )
        raise TrainingError(message)
