"""Weights from losses, and the average of one run's checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stm_retriever.errors import DataError, MergeError
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.losses import info_nce
from stm_training.merge.apply import MergedModel
from stm_training.merge.checkpoints import (
    checkpoint_folders,
    checkpoint_weights,
)
from stm_training.merge.cocktail import MemberLosses, cocktail_recipe, cocktail_weights, member_losses
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    Pair(query=" ".join(text.split()[:3]), positive=text, negatives=(SENTENCES[number - 1],))
    for number, text in enumerate(SENTENCES[:5])
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(BackboneSpec(str(build_tiny_model("bert", tmp_path_factory.mktemp("bert")))))


def noise(backbone: Backbone, *, seed: int, size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(value.shape, generator=generator)
        for name, value in backbone.model.named_parameters()
        if "layer.1" in name
    }


def test_weights_are_the_softmax_of_negative_losses() -> None:
    losses = {"a": 1.0, "b": 0.2, "c": 3.0}
    exact = np.exp(-np.array(list(losses.values())) / 0.5)
    weights = cocktail_weights(losses, temperature=0.5)
    assert np.allclose(list(weights.values()), exact / exact.sum())
    assert list(weights) == ["a", "b", "c"]
    assert cocktail_weights({"a": 5000.0, "b": 5001.0}) == pytest.approx({"a": 0.731058579, "b": 0.268941421})
    assert cocktail_weights(losses, temperature=1e-3) == pytest.approx({"a": 0, "b": 1, "c": 0})


@pytest.mark.parametrize(
    ("losses", "temperature"), [({}, 1.0), ({"a": float("nan")}, 1.0), ({"a": 1.0}, 0.0), ({"a": 1.0}, -1.0)]
)
def test_weights_of_broken_losses_are_refused(losses: dict[str, float], temperature: float) -> None:
    with pytest.raises(MergeError, match="finite loss"):
        cocktail_weights(losses, temperature=temperature)


def test_the_base_takes_part_in_the_cocktail_unless_it_is_left_out() -> None:
    losses = MemberLosses(base=0.4, experts={"a": 0.4, "b": 0.1})
    recipe = cocktail_recipe(losses)
    assert recipe.method == "linear"
    assert recipe.base_weight == pytest.approx(recipe.weights["a"])
    assert recipe.base_weight + sum(recipe.weights.values()) == pytest.approx(1)
    assert recipe.weights["b"] > recipe.weights["a"]
    without = cocktail_recipe(losses, with_base=False)
    assert without.base_weight == 0
    assert sum(without.weights.values()) == pytest.approx(1)


def test_losses_are_those_of_each_member_alone_and_the_base_stays(base: Backbone) -> None:
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    merged = MergedModel(base, {"near": noise(base, seed=0, size=0.01), "far": noise(base, seed=1, size=2.0)})
    losses = member_losses(merged, PAIRS, temperature=0.1)
    assert all(torch.equal(before[name], value) for name, value in base.model.named_parameters())
    assert losses.base == pytest.approx(plain_loss(base), rel=1e-4)
    with torch.no_grad():
        for name, delta in merged.experts["far"].items():
            base.model.get_parameter(name).add_(delta)
    assert losses.experts["far"] == pytest.approx(plain_loss(base), rel=1e-4)
    merged.restore()
    assert abs(losses.experts["near"] - losses.base) < abs(losses.experts["far"] - losses.base)


def plain_loss(backbone: Backbone) -> float:
    """The same examples; sentence n is the positive of pair n and the negative of pair n + 1."""
    queries = torch.from_numpy(encode_texts(backbone, [pair.query for pair in PAIRS], "query"))
    positives = torch.from_numpy(encode_texts(backbone, [pair.positive for pair in PAIRS], "document"))
    negatives = torch.from_numpy(encode_texts(backbone, [pair.negatives[0] for pair in PAIRS], "document"))
    known = torch.tensor([[pair.positive == other.negatives[0] for other in PAIRS] for pair in PAIRS])
    return float(info_nce(queries, positives, negatives, temperature=0.1, excluded_negatives=known))


def test_one_example_is_refused(base: Backbone) -> None:
    merged = MergedModel(base, {"a": noise(base, seed=0, size=0.01)})
    with pytest.raises(DataError, match="at least 2"):
        member_losses(merged, PAIRS[:1])


def test_checkpoints_weigh_the_same_or_less_the_older_they_are() -> None:
    assert checkpoint_weights(4) == [0.25] * 4
    assert checkpoint_weights(3, decay=0.5) == [0.25, 0.25, 0.5]  # a moving average that starts at the oldest
    assert checkpoint_weights(1, decay=0.9) == [1.0]
    assert checkpoint_weights(3, decay=0.0) == [0.0, 0.0, 1.0]
    average, values = 3.0, [3.0, 1.0, 4.0, 1.5]
    for value in values[1:]:
        average = 0.8 * average + 0.2 * value
    assert np.dot(checkpoint_weights(4, decay=0.8), values) == pytest.approx(average)


@pytest.mark.parametrize(("count", "decay"), [(0, None), (2, 1.0), (2, -0.1)])
def test_checkpoint_weights_that_make_no_sense_are_refused(count: int, decay: float | None) -> None:
    with pytest.raises(MergeError, match="at least one checkpoint"):
        checkpoint_weights(count, decay=decay)


def test_checkpoint_folders_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-200", "checkpoint-1000", "checkpoint-30", "checkpoint-30.tmp", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        "checkpoint-30",
        "checkpoint-200",
        "checkpoint-1000",
    ]
    with pytest.raises(MergeError, match="save_steps"):
        checkpoint_folders(tmp_path / "other")
