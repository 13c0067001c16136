"""What holds of every loss: order, masks, empty rows, finite gradients that are those of its values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stm_retriever.errors import ConfigError, TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.losses import (
    Labels,
    build_objective,
    build_row_objective,
    check_learnable,
    matryoshka,
    too_close,
)
from stm_training.finetune.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 8
COUNTS = (2, 0, 3, 1, 0, 1)
NAN = math.nan
OBJECTIVES: dict[str, dict[str, Any]] = {
    "stm": {"loss": "stm"},
    "info_nce": {"loss": "info_nce"},
    "hard_negatives": {"loss": "hard_negatives"},
    "distill": {"loss": "distill"},
    "stm hardness": {"loss": "stm", "hardness_weight": 5.0},
    "info_nce score": {"loss": "info_nce", "false_negatives": "score", "false_negative_margin": 0.1},
    "hard_negatives guide": {"loss": "hard_negatives", "false_negatives": "guide", "hardness_weight": 2.0},
    "distill matryoshka": {"loss": "distill", "matryoshka": (4, 2), "false_negatives": "score"},
    "info_nce matryoshka": {"loss": "info_nce", "matryoshka": (3,), "hardness_weight": 1.0},
}
every_objective = pytest.mark.parametrize("name", list(OBJECTIVES))


def settings_of(name: str) -> TrainSettings:
    return TrainSettings.model_validate({"temperature": 0.2, "teacher_temperature": 0.5, **OBJECTIVES[name]})


def unit(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator, dtype=dtype), dim=-1)


def vectors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [unit(len(COUNTS), 0, dtype), unit(len(COUNTS), 1, dtype), unit(sum(COUNTS), 2, dtype)]


def labels(counts: tuple[int, ...] = COUNTS) -> Labels:
    rows, negatives = len(counts), sum(counts)
    generator = torch.Generator().manual_seed(7)
    return Labels(
        negative_counts=torch.tensor(counts),
        excluded=torch.rand(rows, rows, generator=generator) < 0.2,
        excluded_negatives=torch.rand(rows, negatives, generator=generator) < 0.2,
        teacher_positive=torch.tensor([1.0, 0.5, NAN, 0.2, NAN, 0.9])[:rows],
        teacher_negatives=torch.randn(negatives, generator=generator),
        guide_positives=torch.rand(rows, rows, generator=generator) * 2 - 1,
        guide_negatives=torch.rand(rows, negatives, generator=generator) * 2 - 1,
    )


def reordered(parts: list[Tensor], given: Labels, order: list[int]) -> tuple[list[Tensor], Labels]:
    """The same rows in another order, their negatives with them."""
    first = given.negative_counts.cumsum(0) - given.negative_counts
    places = [
        int(first[row]) + n for row in order for n in range(int(given.negative_counts[row]))
    ]  # of the negatives
    assert given.teacher_positive is not None
    assert given.teacher_negatives is not None
    assert given.guide_positives is not None
    assert given.guide_negatives is not None
    return [parts[0][order], parts[1][order], parts[2][places]], Labels(
        given.negative_counts[order],
        given.excluded[order][:, order],
        given.excluded_negatives[order][:, places],
        given.teacher_positive[order],
        given.teacher_negatives[places],
        given.guide_positives[order][:, order],
        given.guide_negatives[order][:, places],
    )


@every_objective
def test_the_order_of_the_rows_is_of_no_matter(name: str) -> None:
    objective, rows = (build(settings_of(name), WIDTH) for build in (build_objective, build_row_objective))
    order = [3, 5, 0, 1, 4, 2]
    parts, given = vectors(), labels()
    moved, moved_labels = reordered(parts, given, order)
    assert torch.allclose(objective(*parts, given), objective(*moved, moved_labels), rtol=1e-5)
    assert torch.allclose(rows(*parts, given)[order], rows(*moved, moved_labels), rtol=1e-4, atol=1e-6)
    wrong, _ = reordered(parts, given, [2, 1, 0, 4, 3, 5])
    assert not torch.allclose(objective(*parts, given), objective(*wrong, given), rtol=1e-5)


@every_objective
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    objective = build_objective(settings_of(name).model_copy(update={"hardness_weight": 0.0}), WIDTH)
    parts = [part.requires_grad_() for part in vectors(torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: objective(*given, labels()), parts)


def test_hardness_weights_are_constants_to_the_gradient() -> None:
    settings = TrainSettings(loss="info_nce", temperature=0.2, hardness_weight=5.0)
    queries, positives, negatives = vectors(torch.float64)
    queries.requires_grad_()
    build_objective(settings, WIDTH)(
        queries, positives, negatives, Labels.plain(torch.tensor(COUNTS))
    ).backward()
    texts = torch.cat([positives, negatives])
    own = torch.zeros(len(queries), len(texts), dtype=torch.bool).fill_diagonal_(True)
    fixed = (queries @ texts.T).detach()
    shares = torch.softmax(torch.where(own, fixed / 0.2, fixed / 0.2 + 5.0 * fixed), dim=1)
    expected = (shares - own.double()) @ texts / 0.2 / len(queries)
    assert queries.grad is not None
    assert torch.allclose(queries.grad, expected)


@every_objective
def test_the_loss_of_a_batch_is_float32_under_autocast_and_from_bfloat16_vectors(name: str) -> None:
    objective = build_objective(settings_of(name), WIDTH)
    plain = objective(*vectors(), labels())
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(*vectors(), labels()), plain)
    rounded = [part.bfloat16() for part in vectors()]
    again = objective(*rounded, labels())
    assert torch.equal(again, objective(*(part.float() for part in rounded), labels()))


@every_objective
def test_a_row_of_which_everything_is_masked_contributes_nothing_and_no_nan(name: str) -> None:
    settings = settings_of(name).model_copy(update={"false_negatives": "known"})
    given = labels()
    given.excluded[0] = True
    given.excluded_negatives[0] = True
    teacher = given.teacher_positive
    assert teacher is not None
    teacher[0] = NAN
    parts = [part.requires_grad_() for part in vectors()]
    rows = build_row_objective(settings, WIDTH)(*parts, given)
    assert rows[0] == 0
    assert rows.sum() > 0
    (gradient,) = torch.autograd.grad(rows.sum(), parts[0], retain_graph=True)
    assert not gradient[0].any()
    loss = build_objective(settings, WIDTH)(*parts, given)
    for gradient in torch.autograd.grad(loss, parts):
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@every_objective
def test_a_batch_without_any_negative_or_score_is_finite(name: str) -> None:
    settings = settings_of(name).model_copy(update={"false_negatives": "known"})
    parts = [part.requires_grad_() for part in (unit(1, 0), unit(1, 1), unit(0, 2))]
    loss = build_objective(settings, WIDTH)(*parts, Labels.plain(torch.tensor([0])))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for gradient in torch.autograd.grad(loss, parts, allow_unused=True):
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("loss", ["hard_negatives", "distill"])
def test_rows_without_negatives_do_not_dilute_the_others(loss: str) -> None:
    settings = TrainSettings.model_validate({"loss": loss, "contrastive_weight": 0.0, "temperature": 0.2})
    objective = build_objective(settings, WIDTH)
    queries, positives, negatives = vectors()
    given = Labels.plain(torch.tensor(COUNTS))
    scores = torch.randn(sum(COUNTS), generator=torch.Generator().manual_seed(3))
    whole = Labels(
        given.negative_counts,
        given.excluded,
        given.excluded_negatives,
        torch.linspace(-1, 1, len(COUNTS)),
        scores,
    )
    full = [0, 2, 3, 5]
    few = Labels.plain(torch.tensor([COUNTS[row] for row in full]))
    assert whole.teacher_positive is not None
    part = Labels(
        few.negative_counts, few.excluded, few.excluded_negatives, whole.teacher_positive[full], scores
    )
    assert torch.allclose(
        objective(queries, positives, negatives, whole),
        objective(queries[full], positives[full], negatives, part),
    )


def test_rows_without_scores_take_part_in_the_contrastive_share_alone() -> None:
    settings = TrainSettings(loss="distill", temperature=0.2, contrastive_weight=0.5)
    given = labels()
    rows = build_row_objective(settings, WIDTH)(*vectors(), given)
    stm = build_row_objective(TrainSettings(temperature=0.2), WIDTH)(*vectors(), given)
    unscored = [1, 2, 4]  # no negatives, no scores, neither
    assert torch.allclose(rows[unscored], 0.5 * stm[unscored])
    scored = [0, 3, 5]
    assert (rows[scored] > 0.5 * stm[scored] + 1e-3).all()


def test_a_student_that_agrees_with_its_teacher_has_no_divergence() -> None:
    settings = TrainSettings(loss="distill", temperature=0.1, teacher_temperature=0.3, contrastive_weight=0.0)
    queries, positives, negatives = vectors()
    given = Labels.plain(torch.tensor(COUNTS))
    owner = torch.repeat_interleave(torch.arange(len(COUNTS)), given.negative_counts)
    agreeing = Labels(
        given.negative_counts,
        given.excluded,
        given.excluded_negatives,
        3 * (queries * positives).sum(dim=1) + 4,
        3 * (queries[owner] * negatives).sum(dim=1) + 4,
    )
    loss = build_objective(settings, WIDTH)(queries, positives, negatives, agreeing)
    assert float(loss) == pytest.approx(0, abs=1e-6)


@every_objective
def test_row_losses_make_up_the_loss_of_the_batch(name: str) -> None:
    settings = settings_of(name)
    rows = build_row_objective(settings, WIDTH)(*vectors(), labels())
    loss = build_objective(settings, WIDTH)(*vectors(), labels())
    assert rows.shape == (len(COUNTS),)
    if settings.loss in ("stm", "info_nce"):
        assert torch.allclose(rows.mean(), loss)
    elif not settings.matryoshka:
        assert float(rows.max()) >= float(loss) > 0


def test_a_margin_means_the_same_below_zero_as_above() -> None:
    scores = torch.tensor([[-0.20, -0.14, -0.26], [0.20, 0.26, 0.14]])
    positive = torch.tensor([-0.15, 0.25])
    marked = [[False, True, False], [False, True, False]]
    assert too_close(scores, positive, 0.0).tolist() == marked
    marked = [[True, True, False], [True, True, False]]
    assert too_close(scores, positive, 0.1).tolist() == marked


def test_a_text_is_masked_for_the_queries_it_is_close_to_alone() -> None:
    queries, positives, negatives = vectors()
    negatives = negatives.clone()
    negatives[0] = queries[0]  # row 0's own negative is its query itself
    given = Labels.plain(torch.tensor(COUNTS))
    settings = TrainSettings(loss="info_nce", temperature=0.2, false_negatives="score")
    known = Labels.plain(torch.tensor(COUNTS))
    close_to = (queries @ negatives[0]) > (queries * positives).sum(dim=1)
    assert close_to[0]
    assert not close_to.all()
    loss = build_objective(settings, WIDTH)
    by_score = loss(queries, positives, negatives, given)
    known.excluded_negatives[:, 0] = close_to
    assert torch.equal(by_score, loss(queries, positives, negatives, known))
    moved = negatives.clone()
    moved[0] = torch.nn.functional.normalize(queries[0] + 0.01, dim=0)
    moved_rows, rows = (
        build_row_objective(settings, WIDTH)(queries, positives, texts, given) for texts in (moved, negatives)
    )
    assert torch.equal(moved_rows[0], rows[0])
    assert not torch.equal(moved_rows[~close_to], rows[~close_to])


def test_a_guide_that_was_not_given_is_an_error() -> None:
    objective = build_objective(TrainSettings(false_negatives="guide"), WIDTH)
    with pytest.raises(TrainingError, match="without the guide's similarities"):
        objective(*vectors(), Labels.plain(torch.tensor(COUNTS)))


def test_vectors_and_labels_of_different_batches_are_an_error() -> None:
    queries, positives, negatives = vectors()
    objective = build_objective(TrainSettings(), WIDTH)
    with pytest.raises(TrainingError, match="3 queries, 3 positives and 7 negatives came with labels of 6"):
        objective(queries[:3], positives[:3], negatives, labels())
    with pytest.raises(TrainingError, match="6 negatives"):
        objective(queries, positives, negatives[1:], labels())


@pytest.mark.parametrize("lengths", [(0,), (4, 9), (-2,)])
def test_matryoshka_refuses_lengths_that_a_vector_cannot_be_cut_to(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="Give lengths from 1 to 8"):
        build_objective(TrainSettings(matryoshka=lengths), WIDTH)


def test_matryoshka_sums_any_loss_with_given_weights() -> None:
    parts = vectors()[:2]

    def loss(queries: Tensor, positives: Tensor) -> Tensor:
        assert torch.allclose(queries.norm(dim=-1), torch.ones(len(queries)))
        return (queries * positives).sum()

    short = [torch.nn.functional.normalize(part[:, :3], dim=-1) for part in parts]
    expected = 2 * loss(parts[0], parts[1]) + 0.5 * loss(short[0], short[1])
    assert torch.allclose(matryoshka(loss, parts, (WIDTH, 3), weights=(2.0, 0.5)), expected)
    mean = (loss(parts[0], parts[1]) + loss(short[0], short[1])) / 2
    assert torch.allclose(matryoshka(loss, parts, (WIDTH, 3)), mean)
    with pytest.raises(ConfigError, match="give one for each"):
        matryoshka(loss, parts, (WIDTH, 3), weights=(1.0,))


def test_matryoshka_at_the_full_length_alone_changes_nothing() -> None:
    plain, cut = (build_objective(TrainSettings(matryoshka=m), WIDTH) for m in ((), (WIDTH,)))
    assert torch.equal(plain(*vectors(), labels()), cut(*vectors(), labels()))


BARE, WITH = Pair("q", "p"), Pair("q", "p", ("n",))
SCORED = Pair("q", "p", ("n",), scores=(1.0, 0.0))


@pytest.mark.parametrize(
    ("settings", "pairs", "told"),
    [
        ({"loss": "hard_negatives"}, [BARE], "none of the 1 pairs has a negative"),
        ({"loss": "hard_negatives", "hard_negatives": 0}, [WITH], r"\(hard_negatives: 0\)"),
        (
            {"loss": "distill"},
            [WITH, Pair("q", "p", scores=(1.0,))],
            "none of the 2 pairs has a teacher's scores",
        ),
    ],
)
def test_pairs_that_cannot_teach_a_loss_anything_are_refused(
    settings: dict[str, Any], pairs: list[Pair], told: str
) -> None:
    with pytest.raises(TrainingError, match=told):
        check_learnable(TrainSettings.model_validate(settings), pairs)


def test_one_row_that_counts_is_enough_to_learn_from() -> None:
    check_learnable(TrainSettings(loss="hard_negatives"), [BARE, WITH])
    check_learnable(TrainSettings(loss="distill"), [BARE, SCORED])
    check_learnable(TrainSettings(), [BARE])


def test_labels_move_whole() -> None:
    moved = labels().to("meta")
    assert {str(getattr(moved, name).device) for name in moved.__dataclass_fields__} == {"meta"}
    assert Labels.plain(torch.tensor([1])).to("cpu").guide_positives is None
