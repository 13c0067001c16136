"""Listwise distillation: the student shall spread its belief over a row's texts as the teacher does."""

from __future__ import annotations

import torch
from torch import Tensor

from stm_training.finetune.losses.forms import own_cosines
from stm_training.finetune.losses.terms import Term


def listwise_kl(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None,
    teacher: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """KL(softmax(teacher / teacher_temperature) || softmax(cosine / temperature)) over each row's texts.

    ListNet's top-one cross entropy (Cao et al. 2007) less the teacher's own entropy. It is not
    multiplied by temperature squared, as Hinton et al. 2015 (arXiv 1503.02531, section 2) do for class
    logits: cosines are bounded, so the temperature sets the student's scale instead of softening it.

    Args:
        queries: (b, dimension) unit vectors.
        positives: (b, dimension).
        own_negatives: (b, n, dimension), or ``None``.
        teacher: (b, 1 + n) scores of the positive, then the negatives, on any scale; NaN where a text has
            none or is not there, and it is left out of its row's list.
        temperature: Divides the student's cosines.
        teacher_temperature: Divides the teacher's scores.

    Returns:
        The mean over the rows that have a list, a float32 scalar: a scored positive and a scored negative or
        more. Other rows contribute nothing; 0 with zero gradients if no row has one.
    """
    return listwise_kl_term(
        queries,
        positives,
        own_negatives,
        teacher,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
    ).mean()


def listwise_kl_term(
    queries: Tensor,
    positives: Tensor,
    own_negatives: Tensor | None,
    teacher: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
) -> Term:
    """Each row's part of :func:`listwise_kl`."""
    texts = positives[:, None]
    if own_negatives is not None:
        texts = torch.cat([texts, own_negatives], dim=1)
    student = own_cosines(queries, texts) / temperature
    scored = torch.isfinite(teacher)
    counted = scored[:, 0] & scored[:, 1:].any(dim=1)
    # Rows that do not count keep all their texts: a softmax over none would put NaN into the gradient.
    absent = ~scored & counted[:, None]
    teacher = torch.where(scored, teacher, 0).to(student.dtype).detach() / teacher_temperature
    wanted = torch.softmax(teacher.masked_fill(absent, -torch.inf), dim=1)
    given = torch.log_softmax(student.masked_fill(absent, -torch.inf), dim=1).masked_fill(absent, 0)
    return Term((torch.xlogy(wanted, wanted) - wanted * given).sum(dim=1), counted)
