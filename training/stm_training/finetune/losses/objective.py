"""From settings to the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stm_retriever.errors import TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.losses.distillation import listwise_kl_term
from stm_training.finetune.losses.forms import full, hard_negatives_term, info_nce_term, stm_term
from stm_training.finetune.losses.labels import Labels
from stm_training.finetune.losses.masking import with_false_negatives
from stm_training.finetune.losses.matryoshka import checked_lengths, matryoshka
from stm_training.finetune.losses.terms import Term, per_row, total
from stm_training.finetune.settings import TrainSettings

Objective = Callable[[Tensor, Tensor, Tensor, Labels], Tensor]
"""Called with queries (b, d), positives (b, d), negatives (m, d), all of unit length, and the labels."""


def build_objective(settings: TrainSettings, dimension: int) -> Objective:
    """The loss that the settings describe, over the whole batch.

    A row without anything to contrast with contributes nothing: with ``stm`` and ``info_nce`` its loss is 0;
    ``hard_negatives`` and the KL divergence of ``distill`` take their mean over the rows that have negatives
    (and scores). A batch of such rows alone has loss 0 and zero gradients, not an error, since masks by score
    may empty a row in mid-training; :func:`check_learnable` refuses data in which no row could ever count.
    The teacher's scores say how relevant a negative is, so masks act on the contrastive part of ``distill``
    alone.

    Args:
        settings: ``loss`` and what belongs to it.
        dimension: d of the vectors.

    Returns:
        A function of the vectors and their labels to a float32 scalar (float64 for float64 vectors); it has
        no state and leaves any autocast.

    Raises:
        ConfigError: If ``matryoshka`` does not fit the dimension.
    """
    return _build(settings, dimension, total)


def build_row_objective(settings: TrainSettings, dimension: int) -> Objective:
    """As :func:`build_objective`, but it returns each row's own loss (b,), 0 for rows that do not count."""
    return _build(settings, dimension, per_row)


def check_learnable(settings: TrainSettings, pairs: Sequence[Pair]) -> None:
    """Refuse pairs from which the loss can learn nothing at all.

    Raises:
        TrainingError: If ``hard_negatives`` meets no negative, or ``distill`` no scored row with negatives.
    """
    used = settings.hard_negatives > 0
    if settings.loss == "hard_negatives" and not (used and any(pair.negatives for pair in pairs)):
        message = (
            f"loss is 'hard_negatives', but none of the {len(pairs)} pairs has a negative that is used "
            f"(hard_negatives: {settings.hard_negatives}), so every loss would be 0. Mine negatives "
            f"(stm-train mine), raise hard_negatives, or use loss 'stm'."
        )
        raise TrainingError(message)
    if settings.loss == "distill" and not (used and any(p.scores and p.negatives for p in pairs)):
        message = (
            f"loss is 'distill', but none of the {len(pairs)} pairs has a teacher's scores beside a negative "
            f"that is used (hard_negatives: {settings.hard_negatives}). Give each row 'scores': the "
            f"positive's, then one per negative; or use loss 'stm'."
        )
        raise TrainingError(message)


def _build(settings: TrainSettings, dimension: int, reduce: Callable[[Sequence[Term]], Tensor]) -> Objective:
    lengths = checked_lengths(settings.matryoshka, dimension)

    def objective(queries: Tensor, positives: Tensor, negatives: Tensor, labels: Labels) -> Tensor:
        _check_counts(queries, positives, negatives, labels)

        def loss(*vectors: Tensor) -> Tensor:
            return reduce(_terms(settings, labels, vectors))

        with torch.autocast(queries.device.type, enabled=False):
            return matryoshka(loss, [full(v) for v in (queries, positives, negatives)], lengths)

    return objective


def _terms(settings: TrainSettings, labels: Labels, vectors: Sequence[Tensor]) -> list[Term]:
    queries, positives, negatives = vectors
    masked = with_false_negatives(
        queries,
        positives,
        negatives,
        labels,
        rule=settings.false_negatives,
        margin=settings.false_negative_margin,
    )
    temperature, hardness = settings.temperature, settings.hardness_weight
    if settings.loss == "info_nce":
        return [
            info_nce_term(
                queries,
                positives,
                negatives,
                temperature=temperature,
                excluded=masked.excluded,
                excluded_negatives=masked.excluded_negatives,
                hardness_weight=hardness,
            )
        ]
    own, has_negative = _own_negatives(negatives, masked)
    if settings.loss == "hard_negatives":
        return [
            hard_negatives_term(
                queries,
                positives,
                own,
                temperature=temperature,
                has_negative=has_negative,
                hardness_weight=hardness,
            )
        ]
    stm = stm_term(
        queries,
        positives,
        own,
        temperature=temperature,
        has_negative=has_negative,
        excluded=masked.excluded,
        hardness_weight=hardness,
    )
    if settings.loss == "stm":
        return [stm]
    divergence = listwise_kl_term(
        queries,
        positives,
        own,
        _teacher(labels, len(queries)),
        temperature=temperature,
        teacher_temperature=settings.teacher_temperature,
    )
    return [divergence, Term(stm.values, weight=settings.contrastive_weight)]


def _own_negatives(negatives: Tensor, labels: Labels) -> tuple[Tensor | None, Tensor | None]:
    """Each row's own negatives (b, most, d), and which of them are there and are negatives (b, most)."""
    places = labels.own_negatives()
    if places is None:
        return None, None
    place, present = places
    return negatives[place], present & ~labels.excluded_negatives.gather(1, place)


def _teacher(labels: Labels, rows: int) -> Tensor:
    """The teacher's scores of each row's positive and own negatives (b, 1 + most), NaN for none."""
    places = labels.own_negatives()
    most = 0 if places is None else places[0].shape[1]
    scores = torch.full((rows, 1 + most), torch.nan, device=labels.negative_counts.device)
    if labels.teacher_positive is None or labels.teacher_negatives is None:
        return scores
    scores[:, 0] = labels.teacher_positive
    if places is not None:
        place, present = places
        scores[:, 1:] = torch.where(present, labels.teacher_negatives[place], torch.nan)
    return scores


def _check_counts(queries: Tensor, positives: Tensor, negatives: Tensor, labels: Labels) -> None:
    rows, hard = len(queries), len(negatives)
    sizes = (len(positives), len(labels.negative_counts), *labels.excluded.shape)
    if any(size != rows for size in sizes) or tuple(labels.excluded_negatives.shape) != (rows, hard):
        message = (
            f"{rows} queries, {len(positives)} positives and {hard} negatives came with labels of "
            f"{len(labels.negative_counts)} rows, masks {tuple(labels.excluded.shape)} and "
            f"{tuple(labels.excluded_negatives.shape)}. Vectors and labels must be those of the same whole "
            f"batch: gather vectors of all processes first."
        )
        raise TrainingError(message)
