"""Losses equal a plain loop over their definition, and sentence-transformers where it has the same loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stm_training.finetune.losses import info_nce, stm_loss


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def plain_stm(
    queries: Tensor,
    positives: Tensor,
    negatives: list[list[Tensor]],
    temperature: float,
    excluded: set[tuple[int, int]] = frozenset(),  # type: ignore[assignment]
) -> float:
    def similarity(left: Tensor, right: Tensor) -> float:
        return sum(float(a) * float(b) for a, b in zip(left, right, strict=True)) / temperature

    total = 0.0
    for i, query in enumerate(queries):
        own = math.exp(similarity(query, positives[i]))
        others = sum(
            math.exp(similarity(query, positives[j]))
            for j in range(len(positives))
            if j != i and (i, j) not in excluded
        )
        hard = sum(math.exp(similarity(query, negative)) for negative in negatives[i])
        total += -math.log(own / (own + others + hard))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_stm_loss_is_its_definition(temperature: float) -> None:
    queries, positives, negatives = unit(6, 8, seed=0), unit(6, 8, seed=1), unit(6, 8, seed=2)
    expected = plain_stm(queries, positives, [[row] for row in negatives], temperature)
    assert float(stm_loss(queries, positives, negatives, temperature=temperature)) == pytest.approx(
        expected, rel=1e-5
    )


def test_stm_loss_counts_only_the_negatives_that_a_row_has() -> None:
    queries, positives, negatives = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(4, 3, 8, seed=2)
    present = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    own = [[negatives[i, j] for j in range(3) if present[i, j]] for i in range(4)]
    loss = stm_loss(queries, positives, negatives, temperature=0.1, has_negative=present)
    assert float(loss) == pytest.approx(plain_stm(queries, positives, own, 0.1), rel=1e-5)
    single = stm_loss(queries, positives, negatives[:, 0], temperature=0.1, has_negative=present[:, 0])
    own = [[negatives[i, 0]] if present[i, 0] else [] for i in range(4)]
    assert float(single) == pytest.approx(plain_stm(queries, positives, own, 0.1), rel=1e-5)


def test_stm_loss_leaves_out_excluded_positives_but_never_a_rows_own() -> None:
    queries, positives = unit(5, 8, seed=0), unit(5, 8, seed=1)
    excluded = torch.eye(5, dtype=torch.bool)
    excluded[0, 3] = excluded[4, 1] = True
    loss = stm_loss(queries, positives, temperature=0.1, excluded=excluded)
    expected = plain_stm(queries, positives, [[]] * 5, 0.1, {(0, 3), (4, 1)})
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("loss", "reaches_others"), [(stm_loss, False), (info_nce, True)])
def test_a_hard_negative_reaches_other_queries_in_info_nce_and_not_in_stm(
    loss: Callable[..., Tensor], reaches_others: bool
) -> None:
    queries, positives, negatives = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(4, 8, seed=2)
    changed = negatives.clone()
    changed[2] = -changed[2]
    total = 4 * float(
        loss(queries, positives, negatives, temperature=0.1)
        - loss(queries, positives, changed, temperature=0.1)
    )
    its_own_row = _row_loss(queries, positives, negatives, 2) - _row_loss(queries, positives, changed, 2)
    assert (abs(total - its_own_row) > 1e-3) is reaches_others


def _row_loss(queries: Tensor, positives: Tensor, negatives: Tensor, row: int) -> float:
    scores = queries[row] @ positives.T / 0.1
    logits = torch.cat([scores, (queries[row] @ negatives[row] / 0.1)[None]])
    return float(logits.logsumexp(0) - scores[row])


@pytest.mark.filterwarnings("ignore:Importing from:DeprecationWarning")  # the path in both 5 and 6
@pytest.mark.parametrize("with_negatives", [False, True])
def test_info_nce_and_its_gradients_equal_sentence_transformers(with_negatives: bool) -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    parts = [unit(7, 16, seed=seed) for seed in range(3 if with_negatives else 2)]
    ours_in = [part.clone().requires_grad_() for part in parts]
    theirs_in = [part.clone().requires_grad_() for part in parts]
    ours = info_nce(*ours_in, temperature=0.05)
    reference = MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=20.0)  # type: ignore[arg-type]
    theirs = reference.compute_loss_from_embeddings(theirs_in, labels=None)
    ours.backward()
    theirs.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for mine, other in zip(ours_in, theirs_in, strict=True):
        # Theirs normalises once more: on unit vectors its gradient has no radial part.
        tangent = mine.grad - (mine.grad * mine).sum(dim=1, keepdim=True) * mine
        assert torch.allclose(tangent.detach(), other.grad, rtol=1e-4, atol=1e-6)


def test_info_nce_leaves_out_excluded_texts() -> None:
    queries, positives, negatives = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(3, 8, seed=2)
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    excluded[1, 2] = True
    excluded_negatives = torch.zeros(4, 3, dtype=torch.bool)
    excluded_negatives[0] = torch.tensor([True, False, True])
    loss = info_nce(
        queries,
        positives,
        negatives,
        temperature=0.1,
        excluded=excluded,
        excluded_negatives=excluded_negatives,
    )
    hard = [[negatives[1]], *[list(negatives)] * 3]
    assert float(loss) == pytest.approx(plain_stm(queries, positives, hard, 0.1, {(1, 2)}), rel=1e-5)


def test_losses_are_float32_even_for_bfloat16_vectors() -> None:
    queries, positives = unit(4, 8, seed=0).bfloat16(), unit(4, 8, seed=1).bfloat16()
    assert stm_loss(queries, positives, temperature=0.05).dtype == torch.float32
    assert info_nce(queries, positives, temperature=0.05).dtype == torch.float32
