"""Which negatives are none: known relevant texts, and texts too close to the positive to be trusted.

A text without a judgement that scores like the positive is often relevant (NV-Retriever, arXiv 2407.15831,
section 4.2). The margin is subtracted from the positive's similarity, not a share of it, so that it means the
same below zero. Masks are constants to the gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from stm_retriever.errors import TrainingError
from stm_training.finetune.losses.forms import cosines
from stm_training.finetune.losses.labels import Labels

Rule = Literal["known", "score", "guide"]


def too_close(scores: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Mark texts that score above (their query's positive - margin).

    Args:
        scores: (b, k) similarity of each query and each text.
        positive: (b,) similarity of each query and its positive.
        margin: In units of the similarity; 0 marks only what scores above the positive.

    Returns:
        (b, k) bool.
    """
    return scores.detach() > positive.detach()[:, None] - margin


def with_false_negatives(
    queries: Tensor, positives: Tensor, negatives: Tensor, labels: Labels, *, rule: Rule, margin: float
) -> Labels:
    """Add to the known false negatives those that a rule finds.

    ``known`` adds none. ``score`` asks the vectors in training. ``guide`` asks another model, as GISTEmbed
    does (arXiv 2402.16829), on query-document similarities.

    Args:
        queries: (b, dimension) unit vectors.
        positives: (b, dimension).
        negatives: (m, dimension).
        labels: Of the batch.
        rule: See above.
        margin: See :func:`too_close`.

    Returns:
        Labels with more texts excluded. A row's own positive never is: losses ignore the diagonal.

    Raises:
        TrainingError: If the rule is ``guide`` and the labels have no guide similarities.
    """
    if rule == "known":
        return labels
    if rule == "score":
        of_positives, of_negatives = (cosines(queries.detach(), v.detach()) for v in (positives, negatives))
    else:
        of_positives, of_negatives = _guide(labels)
    positive = of_positives.diagonal()
    return replace(
        labels,
        excluded=labels.excluded | too_close(of_positives, positive, margin),
        excluded_negatives=labels.excluded_negatives | too_close(of_negatives, positive, margin),
    )


def _guide(labels: Labels) -> tuple[Tensor, Tensor]:
    if labels.guide_positives is None or labels.guide_negatives is None:
        message = (
            "false_negatives is 'guide', but this batch came without the guide's similarities, so its false "
            "negatives would be pushed away. Give the guide model to the collator, or use 'score' or 'known'."
        )
        raise TrainingError(message)
    return labels.guide_positives, labels.guide_negatives
