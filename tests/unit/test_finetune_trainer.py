"""Training an expert: it learns, repeats bit for bit, resumes after a kill, and refuses bad data."""

from __future__ import annotations

import json
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stm_retriever.errors import ConfigError, DataError, MergeError, ModelFolderError, TrainingError
from stm_retriever.folder import Prompts
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.collate import Collator
from stm_training.finetune.contrastive import ContrastiveTrainer
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.full_weights import full_weight_deltas
from stm_training.finetune.history import DevScore
from stm_training.finetune.lora import adapter_state, full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.step import ContrastiveStep
from stm_training.finetune.trainer import TrainResult, train_expert
from stm_training.merge.apply import MergedModel
from stm_training.merge.recipe import MergeRecipe
from tests.tiny_models import FAMILIES, SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    Pair(
        query=" ".join(sentence.split()[:4]),
        positive=sentence,
        negatives=(SENTENCES[number - 1],),
        query_id=f"q{number}",
        positive_id=f"d{number}",
    )
    for number, sentence in enumerate(SENTENCES)
]
FAST = TrainSettings(
    batch_size=4, learning_rate=5e-3, steps=6, lora_rank=4, lora_alpha=8, precision="fp32", token_budget=64
)


class Killed(Exception):
    """Stands for a kill: leaves the training loop in the middle of a step's end."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    return BackboneSpec(str(build_tiny_model("bert", tmp_path_factory.mktemp("bert"))))


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.adapter_dir / "adapter_model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_its_pairs(tmp_path: Path, family: str) -> None:
    spec = BackboneSpec(str(build_tiny_model(family, tmp_path / "base")))
    settings = FAST.model_copy(update={"steps": 12, "temperature": 0.2, "batch_size": 8})
    result = train_expert(spec, PAIRS, settings=settings, out_dir=tmp_path / "expert")
    assert result.steps == len(result.losses) == 12
    assert sum(result.losses[-3:]) < 0.9 * sum(result.losses[:3])
    assert full_deltas(result.adapter_dir, load_backbone(spec))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_call_twice_gives_the_same_adapter_bit_for_bit(
    tmp_path: Path, bert: BackboneSpec, dropout: float
) -> None:
    settings = FAST.model_copy(update={"lora_dropout": dropout})
    first = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "a", seed=3)
    torch.rand(7)  # whatever else drew random numbers in between
    second = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "b", seed=3)
    other = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "c", seed=4)
    assert_same(weights(first), weights(second))
    assert first.losses == second.losses != other.losses


def test_a_killed_training_continues_from_its_checkpoint_to_the_same_weights(
    tmp_path: Path, bert: BackboneSpec
) -> None:
    settings = FAST.model_copy(update={"lora_dropout": 0.2, "save_steps": 2})

    def killed_at_5(step: int, total: int, loss: float) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "killed", progress=killed_at_5)
    # A kill while a checkpoint is being written leaves one without its last file.
    (tmp_path / "killed" / "checkpoints" / "checkpoint-5").mkdir()
    steps: list[int] = []
    resumed = train_expert(
        bert,
        PAIRS,
        settings=settings,
        out_dir=tmp_path / "killed",
        progress=lambda step, total, loss: steps.append(step),
    )
    whole = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "whole")
    assert steps == [5, 6]
    assert_same(weights(resumed), weights(whole))
    assert resumed.losses == whole.losses
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["adapter"]


def test_a_checkpoint_of_other_data_is_not_continued(tmp_path: Path, bert: BackboneSpec) -> None:
    settings = FAST.model_copy(update={"save_steps": 2})

    def killed_at_3(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path, progress=killed_at_3)
    steps: list[int] = []
    train_expert(
        bert,
        PAIRS[1:],
        settings=settings,
        out_dir=tmp_path,
        progress=lambda step, total, loss: steps.append(step),
    )
    assert steps == [1, 2, 3, 4, 5, 6]


def test_progress_tells_each_step_and_its_loss(tmp_path: Path, bert: BackboneSpec) -> None:
    seen: list[tuple[int, int, float]] = []
    result = train_expert(
        bert, PAIRS, settings=FAST, out_dir=tmp_path, progress=lambda *told: seen.append(told)
    )
    assert [(step, total) for step, total, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert tuple(loss for _, _, loss in seen) == result.losses


def test_training_prints_nothing(
    tmp_path: Path, bert: BackboneSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    train_expert(bert, PAIRS, settings=FAST, out_dir=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ContrastiveStep._loss

    def breaks_at_the_fourth(self: ContrastiveStep, *args: Any) -> Any:
        loss, distance = real(self, *args)
        return (loss * float("nan") if next(calls) == 4 else loss), distance

    calls = count(1)
    monkeypatch.setattr(ContrastiveStep, "_loss", breaks_at_the_fourth)
    settings = FAST.model_copy(update={"save_steps": 2})
    with pytest.raises(TrainingError, match=r"nan at step 4.*checkpoint-2"):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path)
    state = load_file(tmp_path / "checkpoints" / "checkpoint-2" / "adapter_state.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_gradients_that_are_not_finite_never_reach_the_weights(
    tmp_path: Path, bert: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = ContrastiveTrainer._clip_grad_norm

    def overflows_at_the_third(self: ContrastiveTrainer, model: torch.nn.Module) -> Any:
        if self.state.global_step == 2:
            weight = next(value for value in self.model.parameters() if value.grad is not None)
            weight.grad[0, 0] = float("inf")
            seen.append(weight)
        return real(self, model)

    monkeypatch.setattr(ContrastiveTrainer, "_clip_grad_norm", overflows_at_the_third)
    settings = FAST.model_copy(update={"save_steps": 1})
    with pytest.raises(TrainingError, match=r"gradients' norm is \w+ at step 3.*checkpoint-2"):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path)
    assert bool(torch.isfinite(seen[0]).all())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Pair(query="q", positive="Same text", negatives=("same  TEXT",)), "positive among its negatives"),
        (Pair(query=" ", positive="text"), "empty query"),
        (Pair(query="q", positive="text", negatives=("",)), "empty query, positive or negative"),
    ],
)
def test_a_bad_pair_is_an_error_with_its_number(
    tmp_path: Path, bert: BackboneSpec, bad: Pair, words: str
) -> None:
    with pytest.raises(DataError, match=f"pair 11 .*{words}"):
        train_expert(bert, [*PAIRS, bad], settings=FAST, out_dir=tmp_path)


def test_too_few_pairs_for_a_batch_are_an_error_with_the_numbers(tmp_path: Path, bert: BackboneSpec) -> None:
    with pytest.raises(TrainingError, match="3 pairs cannot fill one batch of 4"):
        train_expert(bert, PAIRS[:3], settings=FAST, out_dir=tmp_path)


@pytest.mark.parametrize("loss", ["stm", "info_nce"])
def test_pairs_with_and_without_hard_negatives_train_together(
    tmp_path: Path, bert: BackboneSpec, loss: str
) -> None:
    mixed = [
        Pair(query=pair.query, positive=pair.positive, negatives=pair.negatives * (number % 3))
        for number, pair in enumerate(PAIRS)
    ]
    settings = FAST.model_copy(update={"loss": loss, "hard_negatives": 2})
    result = train_expert(bert, mixed, settings=settings, out_dir=tmp_path)
    assert all(loss > 0 for loss in result.losses)


def test_rows_are_tokenised_with_their_prompts_and_as_serving_does(tmp_path: Path) -> None:
    spec = BackboneSpec(
        str(build_tiny_model("qwen3", tmp_path)), prompts=Prompts(query="find: ", document="text: ")
    )
    backbone = load_backbone(spec)
    rows = [PAIRS[0], Pair(query=PAIRS[1].query, positive=PAIRS[1].positive, prompt="own: ")]
    batch = Collator(backbone, rows, hard_negatives=1, token_budget=64)(rows)
    ids: dict[int, list[int]] = {}
    for part in batch["micro_batches"]:
        for place, row in enumerate(part["rows"].tolist()):
            ids[row] = part["input_ids"][place][part["attention_mask"][place].bool()].tolist()
    tokenizer = backbone.tokenizer
    expected = [*tokenizer.encode([rows[0].query], "query")]
    own = load_backbone(BackboneSpec(spec.source, prompts=Prompts(query="own: ")))
    expected += own.tokenizer.encode([rows[1].query], "query")
    texts = [rows[0].positive, rows[1].positive, rows[0].negatives[0]]
    expected += tokenizer.encode(texts, "document")
    assert [ids[row] for row in range(5)] == [row.tolist() for row in expected]
    assert batch["labels"].negative_counts.tolist() == [1, 0]
    assert batch["texts"] == 5


def test_a_hard_negative_that_answers_the_query_elsewhere_is_dropped(bert: BackboneSpec) -> None:
    rows = [
        Pair(query="fever", positive="high temperature", negatives=("hot skin", "cold feet")),
        Pair(query="fever", positive="hot skin"),
    ]
    batch = Collator(load_backbone(bert), rows, hard_negatives=2, token_budget=64)(rows[:1])
    assert batch["labels"].negative_counts.tolist() == [1]


def test_a_teachers_scores_go_with_the_texts_that_are_used(bert: BackboneSpec) -> None:
    rows = [
        Pair(query="fever", positive="heat", negatives=("hot skin", "cold", "ice"), scores=(9, 8, 2, 1)),
        Pair(query="fever", positive="hot skin"),
        Pair(query="cough", positive="dry throat", negatives=("wet",)),
    ]
    labels = Collator(load_backbone(bert), rows, hard_negatives=2, token_budget=64)(rows)["labels"]
    assert labels.teacher_positive is not None
    assert labels.teacher_negatives is not None
    # "hot skin" answers the query elsewhere, so that its score is left out with it
    torch.testing.assert_close(
        labels.teacher_negatives, torch.tensor([2.0, 1.0, math.nan]), equal_nan=True, rtol=0, atol=0
    )
    assert labels.teacher_positive[0] == 9
    assert labels.teacher_positive[1:].isnan().all()


# What is recorded, who is told


def test_every_step_leaves_a_record_that_outlives_a_kill(tmp_path: Path, bert: BackboneSpec) -> None:
    settings = FAST.model_copy(update={"save_steps": 2, "warmup_steps": 0})

    def killed_at_3(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path, progress=killed_at_3)
    result = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path)
    records = [record for record in result.history if "step_loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert tuple(record["step_loss"] for record in records) == result.losses
    assert all(record["tokens"] > 4 * 3 * 2 and record["seconds"] > 0 for record in records)
    rates = [record["learning_rate"] for record in records]
    assert rates == pytest.approx([5e-3 * (6 - step) / 6 for step in range(6)])  # of the step, not after it
    json.dumps(result.history)


def test_callbacks_of_transformers_are_called(tmp_path: Path, bert: BackboneSpec) -> None:
    class Stops(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert "step_loss" in state.log_history[-1]  # the step's record is there already
            control.should_training_stop = state.global_step == 4

    result = train_expert(bert, PAIRS, settings=FAST, out_dir=tmp_path, callbacks=[Stops()])
    assert result.steps == len(result.losses) == 4


def test_the_best_weights_by_development_score_are_kept(tmp_path: Path, bert: BackboneSpec) -> None:
    settings = FAST.model_copy(update={"eval_steps": 2, "learning_rate": 1e-2})
    states: list[dict[str, torch.Tensor]] = []

    def score(backbone: Backbone) -> DevScore:
        states.append({name: value.clone() for name, value in adapter_state(backbone).items()})
        return DevScore(dev=[0.1, 0.2, 0.5, 0.3][len(states) - 1])

    result = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path, score=score)
    assert len(states) == 4  # before the first step, after 2, 4 and 6
    assert result.best_step == 4
    kept = weights(result)
    for name, value in states[2].items():
        assert torch.equal(kept[name.removeprefix("model.").replace(".default", "")], value), name
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# The anchor, and training of all weights


def test_an_anchor_holds_the_vectors_of_general_texts(tmp_path: Path, bert: BackboneSpec) -> None:
    texts = [" ".join(reversed(sentence.split())) for sentence in SENTENCES]
    base = load_backbone(bert)
    before = encode_texts(base, texts, "document", precision="fp32")

    def drift(weight: float) -> float:
        settings = FAST.model_copy(update={"anchor_weight": weight, "anchor_batch": 5, "learning_rate": 2e-2})
        result = train_expert(
            bert, PAIRS, settings=settings, out_dir=tmp_path / str(weight), anchor_texts=texts
        )
        assert all(("anchor_loss" in record) == (weight > 0) for record in result.history[:6])
        trained = load_backbone(bert)
        with MergedModel(trained, {"expert": full_deltas(result.adapter_dir, trained)}) as merged:
            merged.apply(MergeRecipe(method="task_arithmetic", weights={"expert": 1.0}))
            after = encode_texts(trained, texts, "document", precision="fp32")
        return float(1 - (before * after).sum(axis=1).mean())

    free, held = drift(0.0), drift(20.0)
    assert held < 0.5 * free


def test_an_anchor_without_texts_is_an_error(tmp_path: Path, bert: BackboneSpec) -> None:
    with pytest.raises(ConfigError, match="no general texts"):
        train_expert(bert, PAIRS, settings=FAST.model_copy(update={"anchor_weight": 1.0}), out_dir=tmp_path)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_training_of_all_weights_gives_a_model_that_loads_and_its_deltas(tmp_path: Path, family: str) -> None:
    folder = build_tiny_model(family, tmp_path / "base", prompts={"query": "find: ", "document": "text: "})
    spec = BackboneSpec(str(folder), max_length=40)
    settings = FAST.model_copy(update={"adapter": "full", "learning_rate": 1e-3, "steps": 4})
    result = train_expert(spec, PAIRS, settings=settings, out_dir=tmp_path / "expert")
    assert result.model_dir == tmp_path / "expert" / "model"
    trained = load_backbone(BackboneSpec(str(result.model_dir)))
    base = load_backbone(spec)
    assert (trained.pooling, trained.prompts, trained.max_length) == (base.pooling, base.prompts, 40)
    deltas = full_weight_deltas(result.model_dir, base)
    changed = {name for name, delta in deltas.items() if bool(delta.any())}
    assert any("embed" in name for name in changed)
    assert len(changed) > 0.8 * len(deltas)
    weights_of_trained = dict(trained.model.named_parameters())
    for name, value in base.model.named_parameters():
        expected = value + deltas[name] if name in deltas else value
        torch.testing.assert_close(weights_of_trained[name], expected, rtol=1e-6, atol=1e-7, msg=name)


def test_a_killed_training_of_all_weights_continues_to_the_same_weights(
    tmp_path: Path, bert: BackboneSpec
) -> None:
    settings = FAST.model_copy(update={"adapter": "full", "learning_rate": 1e-3, "save_steps": 2})

    def killed_at_3(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "killed", progress=killed_at_3)
    resumed = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "killed")
    whole = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "whole")
    assert_same(*(load_file(result.adapter_dir / "model.safetensors") for result in (resumed, whole)))


def test_deltas_of_another_architecture_are_an_error(tmp_path: Path, bert: BackboneSpec) -> None:
    other = build_tiny_model("bert", tmp_path / "wider", intermediate_size=48)
    with pytest.raises(MergeError, match=r"\(48,\) there and \(64,\)"):
        full_weight_deltas(other, load_backbone(bert))
    with pytest.raises(ModelFolderError, match="no trained model"):
        full_weight_deltas(tmp_path / "nowhere", load_backbone(bert))


def test_sharding_needs_several_processes(tmp_path: Path, bert: BackboneSpec) -> None:
    with pytest.raises(ConfigError, match="only process"):
        train_expert(bert, PAIRS, settings=FAST, out_dir=tmp_path, fsdp=True)
