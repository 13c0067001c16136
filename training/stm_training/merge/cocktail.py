"""LM-Cocktail: weights from the members' losses on a few examples (Xiao et al. 2023, arXiv 2311.13534)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stm_retriever.errors import DataError, MergeError
from stm_training.merge.recipe import MergeRecipe

if TYPE_CHECKING:
    from stm_training.data.records import Pair
    from stm_training.merge.apply import MergedModel


@dataclass(frozen=True)
class MemberLosses:
    """How well each member does on the same examples; lower is better.

    Attributes:
        base: Loss of the untouched base.
        experts: Loss of each expert by name.
    """

    base: float
    experts: Mapping[str, float]


def cocktail_weights(losses: Mapping[str, float], *, temperature: float = 1.0) -> dict[str, float]:
    """Weights that are larger the smaller the loss: ``softmax(-loss / temperature)`` (section 3.2).

    Args:
        losses: Loss by member.
        temperature: Above 0; the smaller, the more goes to the best member.

    Returns:
        Weights by member; they add up to 1.

    Raises:
        MergeError: If there is no loss, one is not finite, or the temperature is not above 0.
    """
    broken = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
    if not losses or broken or not (math.isfinite(temperature) and temperature > 0):
        message = (
            f"Weights from losses need a finite loss of at least one member and a temperature above 0, found "
            f"{broken or dict(losses)} and temperature {temperature}. A loss of NaN means broken weights: "
            f"leave that member out."
        )
        raise MergeError(message)
    best = min(losses.values())
    shares = {name: math.exp((best - loss) / temperature) for name, loss in losses.items()}
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items()}


def cocktail_recipe(losses: MemberLosses, *, temperature: float = 1.0, with_base: bool = True) -> MergeRecipe:
    """The linear merge with those weights.

    Args:
        losses: What :func:`member_losses` measured.
        temperature: See :func:`cocktail_weights`.
        with_base: Whether the base is a member.

    Returns:
        A merge by ``linear``.

    Raises:
        MergeError: See :func:`cocktail_weights`.
    """
    # No expert's name is empty, so the empty one is free for the base.
    members = {**({"": losses.base} if with_base else {}), **losses.experts}
    weights = cocktail_weights(members, temperature=temperature)
    return MergeRecipe(method="linear", base_weight=weights.pop("", 0.0), weights=weights)


def member_losses(
    merged: MergedModel,
    pairs: Sequence[Pair],
    *,
    experts: Sequence[str] | None = None,
    temperature: float = 0.05,
    token_budget: int = 8192,
) -> MemberLosses:
    """Contrastive loss of the base and of each expert alone, on a few example pairs.

    The examples are one batch: every positive and hard negative that is not known to answer a query opposes
    it (``losses.info_nce``). A pair's own prompt is not used: members are compared under the prompts that
    serve. The base's weights are in place afterwards.

    Args:
        merged: The backbone and its experts.
        pairs: Examples of the target task; the paper takes as few as five.
        experts: Which of them; ``None``: all.
        temperature: Divides the similarities.
        token_budget: Padded tokens per forward pass.

    Returns:
        The losses.

    Raises:
        DataError: If there are fewer than two pairs: one alone has nothing to be told from.
    """
    if len(pairs) < 2:
        message = (
            f"Weights from losses need at least 2 example pairs, found {len(pairs)}: a pair alone has no "
            f"other positive to be told from, so its loss can be 0 for every model. Give more examples."
        )
        raise DataError(message)
    losses = {}
    try:
        for expert in merged.experts if experts is None else experts:
            merged.apply(MergeRecipe(method="task_arithmetic", weights={expert: 1.0}))
            losses[expert] = _loss(merged, pairs, temperature, token_budget)
    finally:
        merged.restore()
    return MemberLosses(base=_loss(merged, pairs, temperature, token_budget), experts=losses)


def _loss(merged: MergedModel, pairs: Sequence[Pair], temperature: float, token_budget: int) -> float:
    import torch

    from stm_training.finetune.encode import encode_texts
    from stm_training.finetune.losses import info_nce
    from stm_training.finetune.pair_keys import false_negatives, known_positives

    queries, positives = [pair.query for pair in pairs], [pair.positive for pair in pairs]
    negatives = [text for pair in pairs for text in pair.negatives]
    documents = torch.from_numpy(
        encode_texts(merged.backbone, positives + negatives, "document", token_budget=token_budget)
    )
    vectors = torch.from_numpy(encode_texts(merged.backbone, queries, "query", token_budget=token_budget))
    known = known_positives(pairs)
    excluded = torch.tensor(false_negatives(queries, positives, known), dtype=torch.bool)
    among_negatives = torch.tensor(false_negatives(queries, negatives, known), dtype=torch.bool)
    return float(
        info_nce(
            vectors,
            documents[: len(pairs)],
            documents[len(pairs) :],
            temperature=temperature,
            excluded=excluded,
            excluded_negatives=among_negatives.reshape(len(pairs), len(negatives)),
        )
    )
