"""GradCache gives the loss and the gradients of one graph, with dropout, for every loss, on ragged batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stm_retriever.errors import DataError, TrainingError
from stm_retriever.tokenization import Ids
from stm_training.data.records import Pair
from stm_training.finetune.anchor import AnchorLoss
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.collate import Batch, Collator
from stm_training.finetune.forward_pass import ForwardPass
from stm_training.finetune.full_weights import train_all_weights
from stm_training.finetune.gather import Ranks
from stm_training.finetune.gradcache import GradCache
from stm_training.finetune.guide import Guide
from stm_training.finetune.lora import attach_lora
from stm_training.finetune.losses import build_objective
from stm_training.finetune.memory_probe import MemoryPlan
from stm_training.finetune.micro_batches import MicroBatch, padded_tokens, texts_of
from stm_training.finetune.precision import multiplies_bf16
from stm_training.finetune.random_state import RandomState
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.step import Anchor, ContrastiveStep, StepResult
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Ragged: 0 to 3 negatives, texts of 3 to 30 words, some rows with a teacher's scores, some with a prompt.
PAIRS = [
    Pair(
        query=" ".join(sentence.split()[: 2 + number % 4]),
        positive=" ".join([sentence] * (1 + number % 3)),
        negatives=tuple(SENTENCES[(number + offset) % 10] for offset in range(1, 1 + number % 4)),
        prompt="find: " if number % 3 == 0 else None,
        scores=tuple(1.0 - 0.2 * place for place in range(1 + number % 4)) if number % 2 else (),
    )
    for number, sentence in enumerate(SENTENCES[:7])
]
BUDGET = 64

LOSSES: dict[str, dict[str, Any]] = {
    "stm": {},
    "info_nce": {"loss": "info_nce"},
    "hard_negatives": {"loss": "hard_negatives"},
    "distill": {"loss": "distill"},
    "matryoshka": {"loss": "info_nce", "matryoshka": (8, 16)},
    "hardness": {"loss": "info_nce", "hardness_weight": 2.0},
    "masked by score": {"false_negatives": "score"},
    "masked by the guide": {"loss": "info_nce", "false_negatives": "guide"},
    "anchored": {"anchor_weight": 0.5, "anchor_batch": 3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: build_tiny_model(family, tmp_path_factory.mktemp(family)) for family in ("bert", "qwen3")}


def settings_of(**values: Any) -> TrainSettings:
    return TrainSettings(
        **{"temperature": 0.2, "hard_negatives": 3, "precision": "fp32", "token_budget": BUDGET, **values}
    )


def adapted(folder: Path, dropout: float) -> Backbone:
    backbone = load_backbone(BackboneSpec(str(folder)))
    torch.manual_seed(1)
    attach_lora(backbone, rank=4, alpha=8, dropout=dropout)
    with torch.no_grad():  # an adapter that has learnt something: a fresh one's update is zero
        for name, value in backbone.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    return backbone.train()


def collator_of(backbone: Backbone, settings: TrainSettings, budget: int = BUDGET) -> Collator:
    return Collator(
        backbone, PAIRS, hard_negatives=settings.hard_negatives, token_budget=budget, loss=settings.loss
    )


def one_step(
    backbone: Backbone, settings: TrainSettings, plan: MemoryPlan | None = None
) -> tuple[StepResult, dict[str, Tensor]]:
    """A step from a fixed random state, and the gradients that it left."""
    collator = collator_of(backbone, settings)
    anchored = None
    if settings.anchor_weight:
        anchored = Anchor(AnchorLoss(backbone, SENTENCES, precision=settings.precision), SENTENCES)
    step = ContrastiveStep(
        backbone,
        settings,
        collator=collator,
        plan=plan or MemoryPlan(BUDGET, BUDGET),
        ranks=Ranks(),
        anchor=anchored,
        guide=Guide(backbone, settings.precision) if settings.false_negatives == "guide" else None,
    )
    torch.manual_seed(7)
    result = step.run(collator(PAIRS), 2, torch.Tensor.backward)
    return result, take_gradients(backbone)


def take_gradients(backbone: Backbone) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    for value in backbone.parameters():
        value.grad = None
    return found


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert first.keys() == second.keys()
    largest = max(float(value.abs().max()) for value in second.values())
    assert largest > 1e-3  # something was learnt at all
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=rtol, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_dropout_the_gradients_are_those_of_one_graph_under_the_same_random_state(
    folders: dict[str, Path], family: str, loss: str
) -> None:
    backbone = adapted(folders[family], dropout=0.3)
    cached, gradients = one_step(backbone, settings_of(grad_cache="on", **LOSSES[loss]))
    after = torch.get_rng_state()
    whole, expected = one_step(backbone, settings_of(grad_cache="off", **LOSSES[loss]))
    assert cached.cached
    assert not whole.cached
    torch.testing.assert_close(cached.loss, whole.loss, rtol=1e-4, atol=0.0)
    assert_same(gradients, expected)
    assert torch.equal(after, torch.get_rng_state())  # later steps draw the same numbers too


@pytest.mark.parametrize("loss", LOSSES)
def test_without_dropout_the_gradients_are_those_of_the_single_padded_batch(
    folders: dict[str, Path], loss: str
) -> None:
    backbone = adapted(folders["bert"], dropout=0.0)
    settings = settings_of(grad_cache="on", **LOSSES[loss])
    result, gradients = one_step(backbone, settings)
    expected, by_hand = single_padded_batch(backbone, settings)
    torch.testing.assert_close(result.loss, expected, rtol=1e-4, atol=0.0)
    assert_same(gradients, by_hand)


def single_padded_batch(backbone: Backbone, settings: TrainSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients with every text padded to the longest, in one forward pass."""
    batch = collator_of(backbone, settings)(PAIRS)
    ids, rows = texts_of(batch["micro_batches"])
    ordered: list[Ids] = [ids[rows.index(row)] for row in range(batch["texts"])]
    anchor_rows: list[int] = []
    if settings.anchor_weight:
        anchor_rows = AnchorLoss(backbone, SENTENCES).batch(2, settings.anchor_batch)
        ordered += backbone.tokenizer.encode([SENTENCES[row] for row in anchor_rows], "document")
    input_ids, mask = (torch.from_numpy(array) for array in backbone.tokenizer.pad(ordered))
    labels = batch["labels"]
    size = len(PAIRS)

    def parts(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return vectors[:size], vectors[size : 2 * size], vectors[2 * size : batch["texts"]]

    with torch.no_grad(), backbone.model.disable_adapter():
        base = backbone(input_ids, mask)[1]
    if settings.false_negatives == "guide":
        queries, positives, negatives = parts(base)
        labels = type(labels)(
            labels.negative_counts,
            labels.excluded,
            labels.excluded_negatives,
            guide_positives=queries @ positives.T,
            guide_negatives=queries @ negatives.T,
        )
    vectors = backbone(input_ids, mask)[1]
    loss = build_objective(settings, backbone.dimension)(*parts(vectors), labels)
    if settings.anchor_weight:
        there, here = base[batch["texts"] :], vectors[batch["texts"] :]
        loss = loss + settings.anchor_weight * (1 - torch.cosine_similarity(here, there)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), take_gradients(backbone)


def test_without_replay_the_gradients_would_be_others(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = adapted(folders["bert"], dropout=0.3)
    _, expected = one_step(backbone, settings_of(grad_cache="off"))
    monkeypatch.setattr(RandomState, "restore", lambda self: None)
    _, gradients = one_step(backbone, settings_of(grad_cache="on"))
    with pytest.raises(AssertionError):
        assert_same(gradients, expected, rtol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_both_ways_agree_to_the_last_bit_on_one_cpu_thread(folders: dict[str, Path], precision: str) -> None:
    """So that the memory which happens to be free never decides which weights come out."""
    backbone = adapted(folders["qwen3"], dropout=0.3)
    first, gradients = one_step(backbone, settings_of(grad_cache="on", precision=precision))
    second, expected = one_step(backbone, settings_of(grad_cache="off", precision=precision))
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_under_bf16_gradients_of_micro_batches_are_summed_in_float32(folders: dict[str, Path]) -> None:
    if not multiplies_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bfloat16 instructions")
    backbone = adapted(folders["bert"], dropout=0.0)
    settings = settings_of(grad_cache="off", precision="bf16")
    _, gradients = one_step(backbone, settings)
    by_name = gradients["model.base_model.model.encoder.layer.0.output.dense.lora_A.default.weight"]
    assert by_name.dtype == torch.float32
    assert not torch.equal(by_name, by_name.bfloat16().float())


def test_all_weights_are_cached_alike(folders: dict[str, Path]) -> None:
    backbone = load_backbone(BackboneSpec(str(folders["bert"])))
    train_all_weights(backbone)
    backbone.train()
    _, gradients = one_step(backbone, settings_of(grad_cache="on"))
    _, expected = one_step(backbone, settings_of(grad_cache="off"))
    assert any("word_embeddings" in name for name in gradients)
    assert_same(gradients, expected)


def test_auto_caches_only_what_does_not_fit(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"], dropout=0.0)
    settings = settings_of(grad_cache="auto", token_budget=None)
    tokens = padded_tokens(collator_of(backbone, settings)(PAIRS)["micro_batches"])
    assert not one_step(backbone, settings, MemoryPlan(BUDGET, tokens))[0].cached
    assert one_step(backbone, settings, MemoryPlan(BUDGET, tokens - 1))[0].cached


def test_at_most_one_micro_batch_has_activations_at_a_time(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"], dropout=0.0)
    parts = collator_of(backbone, settings_of())(PAIRS)["micro_batches"]
    encode = ForwardPass(backbone, "fp32")
    events: list[str] = []

    def watched(part: MicroBatch) -> Tensor:
        events.append("graph" if torch.is_grad_enabled() else "plain")
        return encode(part)

    def backward(tensor: Tensor, gradient: Tensor | None, last: bool) -> None:
        events.append("last" if last else "backward")
        tensor.backward(gradient)  # type: ignore[no-untyped-call]

    cache = GradCache(watched, backward, torch.device("cpu"))
    cache.propagate(cache.vectors(parts).square().sum())
    count = len(parts)
    assert count > 2
    assert events == ["plain"] * count + ["graph", "backward"] * (count - 1) + ["graph", "last"]


def test_repeated_passes_change_neither_gradients_nor_random_numbers(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"], dropout=0.3)
    parts = collator_of(backbone, settings_of())(PAIRS)["micro_batches"]

    def gradients(repeats: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(3)
        cache = GradCache(
            ForwardPass(backbone, "fp32"),
            lambda tensor, gradient, last: tensor.backward(gradient),  # type: ignore[no-untyped-call]
            torch.device("cpu"),
            repeats=repeats,
        )
        vectors = cache.vectors(parts)
        cache.propagate((vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum())
        return take_gradients(backbone), torch.get_rng_state()

    alone, state = gradients(0)
    padded, state_after = gradients(2)
    assert_same(padded, alone, rtol=0.0)
    assert torch.equal(state, state_after)


def test_a_text_without_tokens_is_an_error(folders: dict[str, Path]) -> None:
    backbone = adapted(folders["bert"], dropout=0.0)
    settings = settings_of()
    collator = collator_of(backbone, settings)
    batch = collator(PAIRS)
    batch["micro_batches"][-1]["attention_mask"][1] = 0
    step = ContrastiveStep(
        backbone, settings, collator=collator, plan=MemoryPlan(BUDGET, BUDGET), ranks=Ranks()
    )
    with pytest.raises(DataError, match="becomes no token"):
        step.run(batch, 0, torch.Tensor.backward)


@pytest.mark.parametrize("loss", ["stm", "info_nce"])
def test_a_row_whose_every_negative_is_masked_is_an_error(folders: dict[str, Path], loss: str) -> None:
    rows = [
        Pair(query="fever", positive="high temperature", query_id="q1"),
        Pair(query="cough", positive="hot skin"),
        Pair(query="fever", positive="hot skin"),
    ]
    backbone = load_backbone(BackboneSpec(str(folders["bert"])))
    collate = Collator(backbone, rows, hard_negatives=1, token_budget=BUDGET, loss=loss)
    with pytest.raises(TrainingError, match=r"'fever' \(id q1\) has no negative left: all 1 other"):
        collate(rows[:2])
    with_negative = [rows[0].with_negatives(("cold feet",)), rows[1]]
    batch: Batch = collate(with_negative)
    assert batch["labels"].negative_counts.tolist() == [1, 0]
