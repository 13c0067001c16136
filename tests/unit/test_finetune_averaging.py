"""The mean of a training's last checkpoints as its result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.checkpoints import WEIGHTS
from stm_training.finetune.full_weights import full_weight_deltas
from stm_training.finetune.lora import full_deltas
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.trainer import train_expert
from tests.tiny_models import SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [Pair(query=" ".join(sentence.split()[:4]), positive=sentence) for sentence in SENTENCES]
SETTINGS = TrainSettings(
    batch_size=4,
    learning_rate=5e-3,
    steps=7,
    lora_rank=4,
    lora_alpha=8,
    precision="fp32",
    token_budget=64,
    save_steps=2,
    average_checkpoints=3,
)


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Copies every checkpoint's weights before the training removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        made = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WEIGHTS
        shutil.copy(made, self.folder / f"{state.global_step}.safetensors")


@pytest.fixture
def bert(tmp_path: Path) -> BackboneSpec:
    return BackboneSpec(str(build_tiny_model("bert", tmp_path / "bert")))


def trained(bert: BackboneSpec, folder: Path, settings: TrainSettings) -> tuple[Path, list[dict[str, Any]]]:
    folder.mkdir()
    result = train_expert(
        bert, PAIRS, settings=settings, out_dir=folder / "expert", callbacks=[KeepCheckpoints(folder)]
    )
    # 7 is the last step, where a checkpoint is written whatever save_steps says
    return result.adapter_dir, [load_file(folder / f"{step}.safetensors") for step in (4, 6, 7)]


def test_an_adapters_update_is_the_mean_of_its_last_checkpoints(tmp_path: Path, bert: BackboneSpec) -> None:
    adapter, states = trained(bert, tmp_path / "run", SETTINGS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 24)
    found = full_deltas(adapter, load_backbone(bert))
    assert found
    for name, delta in found.items():
        module = name.removesuffix(".weight")
        key = next(key for key in states[0] if f"{module}.lora_A" in key)
        products = [
            2.0 * state[key.replace("lora_A", "lora_B")].double() @ state[key].double() for state in states
        ]
        torch.testing.assert_close(delta.double(), torch.stack(products).mean(0), rtol=1e-5, atol=1e-7)
    assert [path.name for path in (tmp_path / "run" / "expert").iterdir()] == ["adapter"]


def test_peft_loads_the_averaged_adapter(tmp_path: Path, bert: BackboneSpec) -> None:
    from peft import PeftModel

    adapter, _ = trained(bert, tmp_path / "run", SETTINGS)
    base = load_backbone(bert)
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    deltas = full_deltas(adapter, base)
    merged = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    for name, value in merged.named_parameters():
        expected = before[name] + deltas[name] if name in deltas else before[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_all_weights_are_averaged_too(tmp_path: Path, bert: BackboneSpec) -> None:
    settings = SETTINGS.model_copy(update={"adapter": "full", "learning_rate": 1e-3})
    model, states = trained(bert, tmp_path / "run", settings)
    deltas = full_weight_deltas(model, load_backbone(bert))
    before = dict(load_backbone(bert).model.named_parameters())
    for key in states[0]:
        name = key.removeprefix("model.")
        mean = torch.stack([state[key] for state in states]).mean(0)
        torch.testing.assert_close(before[name] + deltas[name], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"save_steps": None}, "make 0 checkpoints"),
        ({"save_steps": 4}, "Lower save_steps to 2"),
        ({"eval_steps": 2}, "eval_steps keeps the best one"),
    ],
)
def test_an_average_that_cannot_be_made_is_refused_before_training(
    tmp_path: Path, bert: BackboneSpec, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_expert(bert, PAIRS, settings=SETTINGS.model_copy(update=changed), out_dir=tmp_path / "expert")
