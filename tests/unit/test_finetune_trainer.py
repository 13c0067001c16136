"""Training an expert: it learns, repeats bit for bit, resumes after a kill, and refuses bad data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stm_retriever.errors import DataError, TrainingError
from stm_retriever.folder import Prompts
from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.collate import Collator
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import TrainResult, train_expert
from tests.tiny_models import FAMILIES, SENTENCES, build_tiny_model

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
    batch_size=4, learning_rate=5e-3, max_steps=6, rank=4, alpha=8, precision="fp32", token_budget=64
)


class Killed(Exception):
    """Stands for a kill: leaves the training loop in the middle of a step's end."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    settings = FAST.model_copy(update={"max_steps": 12, "temperature": 0.2, "batch_size": 8})
    result = train_expert(spec, PAIRS, settings=settings, out_dir=tmp_path / "expert")
    assert result.steps == len(result.losses) == 12
    assert sum(result.losses[-3:]) < 0.9 * sum(result.losses[:3])
    assert full_deltas(result.adapter_dir, load_backbone(spec))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_call_twice_gives_the_same_adapter_bit_for_bit(
    tmp_path: Path, bert: BackboneSpec, dropout: float
) -> None:
    settings = FAST.model_copy(update={"dropout": dropout})
    first = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "a", seed=3)
    torch.rand(7)  # whatever else drew random numbers in between
    second = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "b", seed=3)
    other = train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path / "c", seed=4)
    assert_same(weights(first), weights(second))
    assert first.losses == second.losses != other.losses


def test_a_killed_training_continues_from_its_checkpoint_to_the_same_weights(
    tmp_path: Path, bert: BackboneSpec
) -> None:
    settings = FAST.model_copy(update={"dropout": 0.2, "save_steps": 2})

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
    from stm_training.finetune import contrastive

    calls = 0

    def breaks_at_the_fourth(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = real(*args, **kwargs)  # type: ignore[arg-type]
        return loss * float("nan") if calls == 4 else loss

    real = contrastive.stm_loss
    monkeypatch.setattr(contrastive, "stm_loss", breaks_at_the_fourth)
    settings = FAST.model_copy(update={"save_steps": 2})
    with pytest.raises(TrainingError, match=r"nan at step 4.*checkpoint-2"):
        train_expert(bert, PAIRS, settings=settings, out_dir=tmp_path)
    state = load_file(tmp_path / "checkpoints" / "checkpoint-2" / "adapter_state.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


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
    assert batch["negative_counts"].tolist() == [1, 0]


def test_a_hard_negative_that_answers_the_query_elsewhere_is_dropped(bert: BackboneSpec) -> None:
    rows = [
        Pair(query="fever", positive="high temperature", negatives=("hot skin", "cold feet")),
        Pair(query="fever", positive="hot skin"),
    ]
    batch = Collator(load_backbone(bert), rows, hard_negatives=2, token_budget=64)(rows[:1])
    assert batch["negative_counts"].tolist() == [1]
