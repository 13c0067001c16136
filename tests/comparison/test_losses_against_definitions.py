"""Losses equal a plain loop over their definition, and sentence-transformers where it has the same loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stm_training.finetune.losses import (
    Labels,
    build_objective,
    hard_negatives_only,
    info_nce,
    listwise_kl,
    stm_loss,
)
from stm_training.finetune.settings import TrainSettings


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def plain_stm(
    queries: Tensor,
    positives: Tensor,
    negatives: list[list[Tensor]],
    temperature: float,
    excluded: set[tuple[int, int]] = frozenset(),  # type: ignore[assignment]
    hardness: float = 0.0,
) -> float:
    def similarity(left: Tensor, right: Tensor) -> float:
        return sum(float(a) * float(b) for a, b in zip(left, right, strict=True)) / temperature

    def push(query: Tensor, text: Tensor) -> float:
        score = similarity(query, text)
        return math.exp(score) * math.exp(hardness * score * temperature)

    total = 0.0
    for i, query in enumerate(queries):
        own = math.exp(similarity(query, positives[i]))
        others = sum(
            push(query, positives[j]) for j in range(len(positives)) if j != i and (i, j) not in excluded
        )
        hard = sum(push(query, negative) for negative in negatives[i])
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


def test_hard_negatives_only_is_the_mean_over_the_rows_that_have_one() -> None:
    queries, positives, negatives = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(4, 3, 8, seed=2)
    present = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    rows = [
        plain_stm(queries[i : i + 1], positives[i : i + 1], [list(negatives[i, present[i]])], 0.1)
        for i in (0, 1, 3)
    ]
    loss = hard_negatives_only(queries, positives, negatives, temperature=0.1, has_negative=present)
    assert float(loss) == pytest.approx(sum(rows) / 3, rel=1e-5)


@pytest.mark.parametrize("hardness", [2.0, 9.0])
def test_hardness_multiplies_every_negatives_term_and_not_the_positives(hardness: float) -> None:
    queries, positives, negatives = unit(5, 8, seed=0), unit(5, 8, seed=1), unit(5, 8, seed=2)
    own, every = [[row] for row in negatives], [list(negatives)] * 5
    loss = stm_loss(queries, positives, negatives, temperature=0.1, hardness_weight=hardness)
    expected = plain_stm(queries, positives, own, 0.1, hardness=hardness)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(plain_stm(queries, positives, own, 0.1))
    loss = info_nce(queries, positives, negatives, temperature=0.1, hardness_weight=hardness)
    expected = plain_stm(queries, positives, every, 0.1, hardness=hardness)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    alone = {(i, j) for i in range(5) for j in range(5)}
    loss = hard_negatives_only(queries, positives, negatives, temperature=0.1, hardness_weight=hardness)
    expected = plain_stm(queries, positives, own, 0.1, alone, hardness)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def plain_kl(teacher: list[float], student: list[float]) -> float:
    wanted, given = (
        [math.exp(value) / sum(map(math.exp, values)) for value in values] for values in (teacher, student)
    )
    return sum(t * math.log(t / s) for t, s in zip(wanted, given, strict=True))


def test_listwise_kl_is_its_definition_over_the_texts_that_have_scores() -> None:
    queries, positives, negatives = unit(4, 8, seed=0), unit(4, 8, seed=1), unit(4, 3, 8, seed=2)
    nan = math.nan
    teacher = [[2.0, 1.0, 0.5, -1.0], [0.1, nan, 0.4, nan], [nan, 1.0, 2.0, 3.0], [1.0, nan, nan, nan]]
    total = 0.0
    for row in (0, 1):
        texts = [positives[row], *negatives[row]]
        scored = [n for n, score in enumerate(teacher[row]) if not math.isnan(score)]
        total += plain_kl(
            [teacher[row][n] / 0.3 for n in scored], [float(queries[row] @ texts[n]) / 0.05 for n in scored]
        )
    loss = listwise_kl(
        queries, positives, negatives, torch.tensor(teacher), temperature=0.05, teacher_temperature=0.3
    )
    assert float(loss) == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("rule", ["score", "guide"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_a_rows_own_negative_is_left_out_where_it_is_too_close_to_the_positive(
    rule: str, margin: float
) -> None:
    queries, positives, negatives = unit(5, 8, seed=0), unit(5, 8, seed=1), unit(7, 8, seed=6)
    judge = (queries, positives, negatives)
    if rule == "guide":
        judge = (unit(5, 4, seed=3), unit(5, 4, seed=4), unit(7, 4, seed=5))
    counts, first = [2, 0, 1, 3, 1], [0, 2, 2, 3, 6]
    limits = [float(judge[0][i] @ judge[1][i]) - margin for i in range(5)]
    excluded = {(i, j) for i in range(5) for j in range(5) if float(judge[0][i] @ judge[1][j]) > limits[i]}
    own = [
        [
            negatives[j]
            for j in range(first[i], first[i] + counts[i])
            if judge[0][i] @ judge[2][j] <= limits[i]
        ]
        for i in range(5)
    ]
    assert sum(map(len, own)) < 7
    plain = Labels.plain(torch.tensor(counts))
    labels = Labels(
        plain.negative_counts,
        plain.excluded,
        plain.excluded_negatives,
        guide_positives=judge[0] @ judge[1].T,
        guide_negatives=judge[0] @ judge[2].T,
    )
    settings = TrainSettings.model_validate(
        {"temperature": 0.1, "false_negatives": rule, "false_negative_margin": margin}
    )
    loss = build_objective(settings, 8)(queries, positives, negatives, labels)
    assert float(loss) == pytest.approx(plain_stm(queries, positives, own, 0.1, excluded), rel=1e-5)
