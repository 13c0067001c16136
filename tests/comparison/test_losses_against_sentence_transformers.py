"""Our losses and their gradients equal those of sentence-transformers 6 where it has the same form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stm_training.finetune.losses import Labels, build_objective, info_nce, listwise_kl
from stm_training.finetune.settings import TrainSettings
from tests.tiny_models import build_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Importing from:DeprecationWarning"),  # the path in 5 and 6
]

ROWS, WIDTH = 7, 16


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def columns(count: int) -> list[Tensor]:
    return [unit(ROWS, WIDTH, seed=seed) for seed in range(count)]


def labels_of(parts: list[Tensor], **known: Tensor) -> Labels:
    """Labels of a batch whose columns after the second are hard negatives."""
    plain = Labels.plain(torch.full((ROWS,), len(parts) - 2))
    return Labels(plain.negative_counts, plain.excluded, plain.excluded_negatives, **known)


def as_ours(parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, positives, and the negatives row by row, out of sentence-transformers' columns."""
    if len(parts) == 2:
        return parts[0], parts[1], parts[0][:0]
    return parts[0], parts[1], torch.stack(parts[2:], dim=1).flatten(0, 1)


class Vectors(torch.nn.Module):
    """Stands for a SentenceTransformer whose vectors are given."""

    max_seq_length = 16
    device = torch.device("cpu")

    def __init__(self, key: str = "vectors") -> None:
        super().__init__()
        from transformers import PreTrainedTokenizerFast

        self.key = key
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer("bert"))

    def get_embedding_dimension(self) -> int:
        return WIDTH

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}


def assert_equal(
    ours: Callable[[list[Tensor]], Tensor], theirs: Callable[[list[Tensor]], Tensor], parts: list[Tensor]
) -> None:
    """Values and gradients are equal; theirs have no radial part, since they normalise once more."""
    mine = [part.clone().requires_grad_() for part in parts]
    other = [part.clone().requires_grad_() for part in parts]
    first, second = ours(mine), theirs(other)
    first.backward()
    second.backward()
    assert float(first.detach()) == pytest.approx(float(second.detach()), rel=1e-5)
    assert float(first.detach()) > 0.01
    for left, right in zip(mine, other, strict=True):
        assert left.grad is not None
        assert right.grad is not None
        left_part, right_part = (_tangent(part.grad, part.detach()) for part in (left, right))
        assert right_part.abs().max() > 1e-4
        assert torch.allclose(left_part, right_part, rtol=1e-4, atol=1e-6)


def _tangent(gradient: Tensor | None, vectors: Tensor) -> Tensor:
    assert gradient is not None
    return gradient - (gradient * vectors).sum(dim=1, keepdim=True) * vectors


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_info_nce_with_and_without_hardness(count: int, strength: float) -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    reference = MultipleNegativesRankingLoss(
        model=torch.nn.Identity(),  # type: ignore[arg-type]
        scale=20.0,
        hardness_mode="all_negatives" if strength else None,
        hardness_strength=strength,
    )
    settings = TrainSettings(loss="info_nce", temperature=0.05, hardness_weight=strength)
    objective = build_objective(settings, WIDTH)
    assert_equal(
        lambda parts: objective(*as_ours(parts), labels_of(parts)),
        lambda parts: reference.compute_loss_from_embeddings(parts, labels=None),
        columns(count),
    )


def test_hardness_on_pairs_alone_is_llaves_form() -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    reference = MultipleNegativesRankingLoss(
        model=torch.nn.Identity(),  # type: ignore[arg-type]
        scale=10.0,
        hardness_mode="in_batch_negatives",
        hardness_strength=9.0,
    )
    assert_equal(
        lambda parts: info_nce(*parts, temperature=0.1, hardness_weight=9.0),
        lambda parts: reference.compute_loss_from_embeddings(parts, labels=None),
        columns(2),
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("margin", [0.0, 0.15, -0.1])
def test_a_guides_mask_is_gist_embeds(count: int, margin: float) -> None:
    from sentence_transformers.losses import GISTEmbedLoss

    guide = [unit(ROWS, 8, seed=50 + n) for n in range(count)]
    reference: Any = GISTEmbedLoss(
        Vectors(),  # type: ignore[arg-type]
        Vectors("guide"),  # type: ignore[arg-type]
        temperature=0.1,
        margin=margin,
        contrast_anchors=False,
        contrast_positives=False,
    )
    known = {
        "guide_positives": guide[0] @ guide[1].T,
        "guide_negatives": guide[0] @ as_ours(guide)[2].T if count > 2 else torch.zeros(ROWS, 0),
    }
    settings = TrainSettings(
        loss="info_nce", temperature=0.1, false_negatives="guide", false_negative_margin=margin
    )
    objective = build_objective(settings, WIDTH)
    parts = columns(count)
    features = [{"guide": vectors} for vectors in guide]
    assert_equal(
        lambda parts: objective(*as_ours(parts), labels_of(parts, **known)),
        lambda parts: reference([f | {"vectors": p} for f, p in zip(features, parts, strict=True)], None),
        parts,
    )
    unmasked = build_objective(TrainSettings(loss="info_nce", temperature=0.1), WIDTH)
    assert float(unmasked(*as_ours(parts), labels_of(parts))) != pytest.approx(
        float(objective(*as_ours(parts), labels_of(parts, **known)))
    )


def test_the_score_mask_is_gist_embeds_with_the_model_as_its_own_guide() -> None:
    from sentence_transformers.losses import GISTEmbedLoss

    reference: Any = GISTEmbedLoss(
        Vectors(),  # type: ignore[arg-type]
        Vectors(),  # type: ignore[arg-type]
        temperature=0.1,
        margin=0.05,
        contrast_anchors=False,
        contrast_positives=False,
    )
    objective = build_objective(
        TrainSettings(loss="info_nce", temperature=0.1, false_negatives="score", false_negative_margin=0.05),
        WIDTH,
    )
    parts = columns(3)
    assert (parts[0] * parts[1]).sum(dim=1).min() < 0, "negative similarities are among them"
    assert_equal(
        lambda parts: objective(*as_ours(parts), labels_of(parts)),
        lambda parts: reference([{"vectors": part} for part in parts], None),
        parts,
    )


@pytest.mark.parametrize("lengths", [(4,), (8, 4, 2)])
def test_matryoshka_is_the_mean_of_theirs_over_the_same_lengths(lengths: tuple[int, ...]) -> None:
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model: Any = Vectors()
    every = [WIDTH, *lengths]
    inner = MultipleNegativesRankingLoss(model, scale=10.0)
    reference: Any = MatryoshkaLoss(model, inner, matryoshka_dims=every)
    settings = TrainSettings(loss="info_nce", temperature=0.1, matryoshka=lengths)
    objective = build_objective(settings, WIDTH)
    assert_equal(
        lambda parts: objective(*as_ours(parts), labels_of(parts)),
        lambda parts: reference([{"vectors": part} for part in parts], None) / len(every),
        columns(3),
    )


@pytest.mark.parametrize("negatives", [1, 4])
def test_listwise_kl_is_their_distillation_without_the_squared_temperature(negatives: int) -> None:
    from sentence_transformers.losses import DistillKLDivLoss

    reference = DistillKLDivLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]
        student_temperature=0.05,
        teacher_temperature=0.3,
    )
    teacher = torch.randn(ROWS, 1 + negatives, generator=torch.Generator().manual_seed(9))

    def ours(parts: list[Tensor]) -> Tensor:
        return listwise_kl(
            parts[0],
            parts[1],
            torch.stack(parts[2:], dim=1),
            teacher,
            temperature=0.05,
            teacher_temperature=0.3,
        )

    assert_equal(
        ours,
        lambda parts: reference.compute_loss_from_embeddings(parts, teacher) / 0.05**2,
        columns(2 + negatives),
    )


def test_distillation_is_their_kl_beside_a_share_of_the_stm_loss() -> None:
    from sentence_transformers.losses import DistillKLDivLoss

    reference = DistillKLDivLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]
        student_temperature=0.1,
        teacher_temperature=0.5,
    )
    teacher = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(9))
    settings = TrainSettings(
        loss="distill", temperature=0.1, teacher_temperature=0.5, contrastive_weight=0.25
    )
    objective = build_objective(settings, WIDTH)
    stm = build_objective(TrainSettings(temperature=0.1), WIDTH)
    known = {"teacher_positive": teacher[:, 0], "teacher_negatives": teacher[:, 1:].flatten()}
    assert_equal(
        lambda parts: objective(*as_ours(parts), labels_of(parts, **known)),
        lambda parts: (
            reference.compute_loss_from_embeddings(parts, teacher) / 0.1**2
            + 0.25 * stm(*as_ours(parts), labels_of(parts))
        ),
        columns(4),
    )
