"""The regulariser against forgetting: zero at the base, and its gradient brings the vectors back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from stm_retriever.errors import ConfigError
from stm_training.finetune.anchor import AnchorLoss
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def adapted(folder: Path) -> Backbone:
    backbone = load_backbone(BackboneSpec(str(folder)))
    torch.manual_seed(0)
    attach_lora(backbone, rank=4, alpha=8, dropout=0.0)
    return backbone


def change(backbone: Backbone, by: float) -> None:
    with torch.no_grad():
        for name, value in backbone.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=by, generator=torch.Generator().manual_seed(1))


def distance(anchor: AnchorLoss, model: Backbone, step: int = 0, size: int = 8) -> torch.Tensor:
    """As a step computes it: the texts as documents, each row alone."""
    rows = anchor.batch(step, size)
    ids = [
        torch.from_numpy(row)[None]
        for row in model.tokenizer.encode([SENTENCES[row] for row in rows], "document")
    ]
    return anchor.distance(torch.cat([model(row, torch.ones_like(row))[1] for row in ids]), rows)


def measured(anchor: AnchorLoss, model: Backbone, step: int = 0, size: int = 8) -> float:
    return float(distance(anchor, model, step, size).detach())


def test_the_untouched_base_has_no_distance_and_a_changed_one_has(adapted: Backbone) -> None:
    anchor = AnchorLoss(adapted, SENTENCES, precision="fp32", token_budget=64)
    assert measured(anchor, adapted) == pytest.approx(0.0, abs=1e-6)
    change(adapted, 0.3)
    near = measured(anchor, adapted)
    change(adapted, 3.0)
    assert 1e-4 < near < measured(anchor, adapted) <= 2.0


def test_the_distance_is_one_minus_the_cosine_to_the_bases_vectors(adapted: Backbone, folder: Path) -> None:
    anchor = AnchorLoss(adapted, SENTENCES, precision="fp32", token_budget=64)
    base = load_backbone(BackboneSpec(str(folder)))
    change(adapted, 1.0)
    rows = anchor.batch(3, 4)
    distances = []
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(base.tokenizer.encode([SENTENCES[row]], "document")[0])[None]
            ours, theirs = (model(ids, torch.ones_like(ids))[1] for model in (adapted, base))
            distances.append(1 - float(torch.nn.functional.cosine_similarity(ours, theirs)))
    assert measured(anchor, adapted, 3, 4) == pytest.approx(sum(distances) / 4, abs=1e-5)


def test_an_adapter_that_already_holds_weights_does_not_move_the_anchor(adapted: Backbone) -> None:
    clean = AnchorLoss(adapted, SENTENCES, precision="fp32")
    change(adapted, 1.0)
    loaded = AnchorLoss(adapted, SENTENCES, precision="fp32")
    assert measured(clean, adapted) == pytest.approx(measured(loaded, adapted), abs=1e-6)


def test_following_its_gradient_brings_the_vectors_back(adapted: Backbone) -> None:
    anchor = AnchorLoss(adapted, SENTENCES, precision="fp32", token_budget=64)
    change(adapted, 1.0)
    trained = [value for value in adapted.parameters() if value.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=2.0)
    distances = []
    for step in range(12):
        loss = distance(anchor, adapted, step, len(SENTENCES))
        distances.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert distances[-1] < 0.6 * distances[0]


def test_every_text_is_used_once_per_pass_and_the_same_step_gets_the_same_texts(adapted: Backbone) -> None:
    anchor = AnchorLoss(adapted, SENTENCES, seed=5)
    drawn = [row for step in range(5) for row in anchor.batch(step, 4)]
    total = len(SENTENCES)
    assert Counter(drawn) == Counter(dict.fromkeys(range(total), 2))
    assert sorted(drawn[:total]) == sorted(drawn[total:]) == list(range(total))
    assert drawn[:total] != drawn[total:]
    assert anchor.batch(3, 4) == drawn[12:16]
    assert AnchorLoss(adapted, SENTENCES, seed=6).batch(0, total) != drawn[:total]


def test_more_texts_than_there_are_go_into_further_passes(adapted: Backbone) -> None:
    assert Counter(AnchorLoss(adapted, SENTENCES[:3]).batch(0, 6)) == {0: 2, 1: 2, 2: 2}


def test_no_text_is_an_error_that_says_what_to_do(adapted: Backbone) -> None:
    with pytest.raises(ConfigError, match="set anchor_weight to 0"):
        AnchorLoss(adapted, [])
