"""Selecting pairs by gradient norm: exact norms, both tails dropped, the same choice every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_retriever.errors import ConfigError, TrainingError
from stm_retriever.folder import Prompts
from stm_training.data.records import Pair
from stm_training.finetune import pair_gradients
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora
from stm_training.finetune.losses import Labels, build_row_objective
from stm_training.finetune.pair_gradients import ScoredBatch, gradient_norms
from stm_training.finetune.pair_keys import row_keys
from stm_training.finetune.selection import (
    random_selection,
    scored_batches,
    select_by_gradient,
)
from stm_training.finetune.settings import TrainSettings
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(batch_size=4, precision="fp32", token_budget=64, temperature=0.2, hard_negatives=2)
PAIRS = [
    Pair(
        query=" ".join(sentence.split()[: 2 + number % 4]),
        positive=sentence,
        negatives=tuple(SENTENCES[number - 1 - n] for n in range(number % 3)),
        query_id=f"q{number}",
        prompt="Find: " if number == 4 else None,
    )
    for number, sentence in enumerate(SENTENCES)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build_tiny_model(family, tmp_path_factory.mktemp(family)) for family in ("bert", "qwen3")}


def adapted(folder: Path, dropout: float = 0.0) -> Backbone:
    """A backbone with an adapter that has left its zero start, as after a probe training."""
    backbone = load_backbone(BackboneSpec(str(folder), prompts=Prompts(query="query: ", document="text: ")))
    torch.manual_seed(1)
    attach_lora(backbone, rank=3, alpha=6, dropout=dropout)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape))
    return backbone


def plain_norm(backbone: Backbone, pairs: list[Pair], row: int, settings: TrainSettings) -> float:
    """One pair's norm by the definition: texts one by one, everyone else's vectors constant."""

    def encode(text: str, prompt: str, role: str, owner: int) -> torch.Tensor:
        tokenizer = backbone.tokenizer.from_json(
            backbone.tokenizer_json,
            max_length=backbone.max_length,
            eos_token_id=backbone.eos_token_id,
            pad_token_id=backbone.pad_token_id,
            prompts=Prompts(),
        )
        (ids,) = tokenizer.encode([prompt + text], role)  # type: ignore[arg-type]
        ones = torch.ones(1, len(ids), dtype=torch.int64)
        vector: torch.Tensor = backbone(torch.from_numpy(ids)[None], ones)[1][0]
        return vector if owner == row else vector.detach()

    queries, positives, negatives = [], [], []
    for owner, pair in enumerate(pairs):
        queries.append(encode(pair.query, pair.prompt or "query: ", "query", owner))
        positives.append(encode(pair.positive, "text: ", "document", owner))
        negatives += [encode(text, "text: ", "document", owner) for text in pair.negatives]
    nothing = torch.zeros(0, backbone.dimension)
    labels = Labels.plain(torch.tensor([len(pair.negatives) for pair in pairs]))
    texts = [text for pair in pairs for text in pair.negatives]
    for number, pair in enumerate(pairs):  # a row's positive may be another row's negative
        labels.excluded_negatives[number] = torch.tensor([text == pair.positive for text in texts])
    losses = build_row_objective(settings, backbone.dimension)(
        torch.stack(queries),
        torch.stack(positives),
        torch.stack(negatives) if negatives else nothing,
        labels,
    )
    weights = [weight for weight in backbone.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(losses[row], weights, allow_unused=True)
    return float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())


@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize("loss", ["stm", "info_nce", "hard_negatives"])
def test_norms_are_those_of_each_pairs_own_loss(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, family: str, loss: str
) -> None:
    settings = SETTINGS.model_copy(update={"loss": loss})
    backbone = adapted(folders[family], dropout=0.5)
    backbone.train()
    norms = gradient_norms(backbone, PAIRS, [ScoredBatch((0, 1, 2, 4, 5), 5)], settings=settings)
    assert backbone.training
    backbone.eval()
    rows = [PAIRS[row] for row in (0, 1, 2, 4, 5)]
    expected = [plain_norm(backbone, rows, row, settings) for row in range(5)]
    assert norms[[0, 1, 2, 4, 5]] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert np.isnan(norms[[3, 6, 7, 8, 9]]).all()
    assert bool(norms[0] == 0) is (loss == "hard_negatives"), "pair 0 has no negative"
    assert all(weight.grad is None for weight in backbone.parameters())
    assert "one by one" not in caplog.text


def test_norms_of_all_weights_are_exact_too(folders: dict[str, Path]) -> None:
    backbone = load_backbone(
        BackboneSpec(str(folders["bert"]), prompts=Prompts(query="query: ", document="text: "))
    )
    norms = gradient_norms(backbone, PAIRS, [ScoredBatch((0, 2, 4), 2)], settings=SETTINGS)
    rows = [PAIRS[row] for row in (0, 2, 4)]
    expected = [plain_norm(backbone, rows, row, SETTINGS) for row in range(2)]
    assert norms[[0, 2]] == pytest.approx(expected, rel=1e-3)


def test_how_pairs_are_put_together_does_not_change_a_norm(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = adapted(folders["bert"])
    batches = scored_batches(PAIRS, batch_size=4, seed=0)
    many = gradient_norms(
        backbone, PAIRS, batches, settings=SETTINGS.model_copy(update={"token_budget": 4096})
    )
    few = gradient_norms(backbone, PAIRS, batches, settings=SETTINGS.model_copy(update={"token_budget": 1}))
    monkeypatch.setattr(pair_gradients, "lora_layers", lambda *_: [])
    slow = gradient_norms(backbone, PAIRS, batches, settings=SETTINGS)
    assert np.isfinite(many).all()
    assert many == pytest.approx(few, rel=1e-4)
    assert many == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("how", ["another layout", "another function"])
def test_pairs_are_done_one_by_one_where_layers_are_not_what_they_seem(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    backbone = adapted(folders["bert"])
    layer = next(module for module in backbone.modules() if hasattr(module, "lora_A"))
    plain = layer.forward
    if how == "another layout":  # as of a model that lays its texts one after the other
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0][None],))
        monkeypatch.setattr(layer, "forward", lambda x: plain(x[0]))
    else:
        monkeypatch.setattr(layer, "forward", lambda x: plain(2 * x))
    batches = scored_batches(PAIRS, batch_size=4, seed=0)
    norms = gradient_norms(backbone, PAIRS, batches, settings=SETTINGS)
    assert caplog.text.count("one by one") == 1
    monkeypatch.setattr(pair_gradients, "lora_layers", lambda *_: [])
    assert norms == pytest.approx(gradient_norms(backbone, PAIRS, batches, settings=SETTINGS), rel=1e-4)


def test_both_tails_are_dropped_and_the_report_says_where(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"])
    seen: list[tuple[int, int]] = []
    selection = select_by_gradient(
        backbone,
        PAIRS,
        settings=SETTINGS,
        drop_low=0.25,
        drop_high=0.3,
        seed=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert selection.norms is not None
    order = np.argsort(selection.norms)
    assert selection.kept == tuple(sorted(order[2:7]))
    assert selection.of(PAIRS) == [PAIRS[place] for place in selection.kept]
    assert seen[-1] == (10, 10)
    report = json.loads(json.dumps(selection.report(PAIRS)))
    assert (report["dropped_low"], report["dropped_high"]) == (2, 3)
    assert report["thresholds"] == [selection.norms[order[2]], selection.norms[order[6]]]
    assert [row["query_id"] for row in report["kept"]] == [f"q{place}" for place in selection.kept]
    histogram = report["histogram"]
    assert histogram["zeros"] + sum(histogram["pairs"]) == 10
    assert sum(histogram["kept"]) == 5
    assert len(histogram["edges"]) == 1 + len(histogram["pairs"])


def test_the_same_call_chooses_the_same_pairs(folders: dict[str, Path]) -> None:
    first, second = (
        select_by_gradient(adapted(folders["bert"]), PAIRS, settings=SETTINGS, seed=5) for _ in range(2)
    )
    assert first.norms is not None
    assert second.norms is not None
    assert np.array_equal(first.norms, second.norms)
    assert first.kept == second.kept


def test_every_pair_is_scored_once_and_meets_no_double() -> None:
    # Three pairs of one document, two of one query, and a number that fills no batches.
    pairs = [
        *PAIRS,
        Pair("another way to ask", SENTENCES[0]),
        Pair("a third way", SENTENCES[0]),
        Pair(PAIRS[1].query, "another text"),
    ]
    batches = scored_batches(pairs, batch_size=4, seed=0)
    scored = [row for batch in batches for row in batch.rows[: batch.scored]]
    assert sorted(scored) == list(range(13))
    for batch in batches:
        assert len(batch.rows) == 4
        keys = [set(row_keys(pairs[row])) for row in batch.rows]
        assert sum(map(len, keys)) == len(set().union(*keys))
    assert scored_batches(pairs, batch_size=4, seed=0) == batches
    assert scored_batches(pairs, batch_size=4, seed=1) != batches


def test_distillation_selects_by_the_scores_it_trains_on(folders: dict[str, Path]) -> None:
    settings = SETTINGS.model_copy(update={"loss": "distill", "contrastive_weight": 0.0})
    agreed = [Pair(p.query, p.positive, p.negatives, scores=(1.0,) * (1 + len(p.negatives))) for p in PAIRS]
    unscored = [*agreed[:2], Pair(PAIRS[2].query, PAIRS[2].positive, PAIRS[2].negatives), *agreed[3:]]
    backbone = adapted(folders["bert"])
    batches = scored_batches(PAIRS, batch_size=5, seed=0)
    norms = gradient_norms(backbone, unscored, batches, settings=settings)
    assert norms[2] == 0
    assert {row for row in range(10) if norms[row] > 0} == {1, 4, 5, 7, 8}  # with negatives and scores


def test_a_random_choice_is_as_large_and_depends_on_its_seed() -> None:
    first = random_selection(PAIRS, size=6, seed=1)
    assert len(first.kept) == len(set(first.kept)) == 6
    assert list(first.kept) == sorted(first.kept)
    assert first == random_selection(PAIRS, size=6, seed=1)
    assert len({random_selection(PAIRS, size=6, seed=seed).kept for seed in range(5)}) > 1
    report = first.report(PAIRS)
    assert report["method"] == "random"
    assert [row["place"] for row in report["kept"]] == list(first.kept)
    for size in (0, 11):
        with pytest.raises(ConfigError, match="Set a size from 1 to 10"):
            random_selection(PAIRS, size=size)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.0, 1.0), (float("nan"), 0.1)])
def test_shares_that_leave_no_pair_are_refused(folders: dict[str, Path], shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        select_by_gradient(
            adapted(folders["bert"]), PAIRS, settings=SETTINGS, drop_low=shares[0], drop_high=shares[1]
        )


def test_a_selection_of_other_pairs_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 10 pairs, but got 9"):
        random_selection(PAIRS, size=2).of(PAIRS[1:])


def test_a_model_without_trainable_weights_is_refused(folders: dict[str, Path]) -> None:
    backbone = load_backbone(BackboneSpec(str(folders["bert"])))
    backbone.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"No weight .* is trainable"):
        select_by_gradient(backbone, PAIRS, settings=SETTINGS)


def test_a_diverged_probe_is_told_and_not_ranked(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"])
    with torch.no_grad():
        next(weight for weight in backbone.parameters() if weight.requires_grad).fill_(float("nan"))
    with pytest.raises(TrainingError, match="is nan, so pairs cannot be ranked"):
        select_by_gradient(backbone, PAIRS, settings=SETTINGS)
