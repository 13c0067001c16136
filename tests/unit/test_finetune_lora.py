"""Adapters: they start as nothing, come back as saved, and multiply out to what PEFT applies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stm_retriever.errors import MergeError, ModelFolderError, TrainingError
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora, full_deltas, save_adapter
from tests.tiny_models import FAMILIES, SENTENCES, build_tiny_model


def vectors(backbone: Backbone) -> torch.Tensor:
    ids, mask = backbone.tokenizer.pad(backbone.tokenizer.encode(list(SENTENCES[:3]), "query"))
    with torch.no_grad():
        return backbone(torch.from_numpy(ids), torch.from_numpy(mask))[1]


def with_random_adapter(folder: Path, seed: int = 1) -> Backbone:
    backbone = load_backbone(BackboneSpec(str(folder)))
    torch.manual_seed(seed)
    attach_lora(backbone, rank=4, alpha=8, dropout=0.0)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return backbone.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_deltas_added_to_the_base_are_the_adapted_model(tmp_path: Path, family: str) -> None:
    folder = build_tiny_model(family, tmp_path / "base")
    adapted = with_random_adapter(folder)
    save_adapter(adapted, tmp_path / "adapter")
    base = load_backbone(BackboneSpec(str(folder)))
    untouched = vectors(base)
    deltas = full_deltas(tmp_path / "adapter", base)
    for name, delta in deltas.items():
        assert delta.dtype == torch.float32
        base.model.get_parameter(name).data += delta
    assert torch.allclose(vectors(base), vectors(adapted), atol=2e-6)
    assert float((vectors(base) - untouched).abs().max()) > 1e-2


def test_an_untrained_adapter_changes_nothing(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneSpec(str(build_tiny_model("qwen3", tmp_path))))
    before = vectors(backbone)
    attach_lora(backbone)
    assert torch.allclose(vectors(backbone.eval()), before, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_is_adapted_and_nothing_else_learns(tmp_path: Path, family: str) -> None:
    backbone = load_backbone(BackboneSpec(str(build_tiny_model(family, tmp_path))))
    linear = sum(isinstance(module, torch.nn.Linear) for module in backbone.model.modules())
    pooler = family in {"bert", "xlm_roberta"}
    attach_lora(backbone, rank=2)
    trainable = [name for name, value in backbone.named_parameters() if value.requires_grad]
    assert len(trainable) == 2 * (linear - pooler)
    assert all("lora_" in name for name in trainable)


def test_the_saved_adapter_says_which_base_it_belongs_to(tmp_path: Path) -> None:
    folder = build_tiny_model("llama", tmp_path / "base")
    save_adapter(with_random_adapter(folder), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_itself_loads_the_saved_adapter_with_the_same_vectors(tmp_path: Path) -> None:
    from peft import PeftModel

    folder = build_tiny_model("bert", tmp_path / "base")
    adapted = with_random_adapter(folder)
    save_adapter(adapted, tmp_path / "adapter")
    other = load_backbone(BackboneSpec(str(folder)))
    other.model = PeftModel.from_pretrained(other.model, tmp_path / "adapter")
    assert torch.allclose(vectors(other.eval()), vectors(adapted), atol=1e-6)


def test_saving_again_replaces_the_older_adapter(tmp_path: Path) -> None:
    folder = build_tiny_model("bert", tmp_path / "base")
    for seed in (1, 2):
        save_adapter(with_random_adapter(folder, seed), tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = with_random_adapter(folder, 2).state_dict()
    name = next(key for key in saved if "lora_B" in key)
    assert torch.equal(saved[name], expected["model." + name.replace(".weight", ".default.weight")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_only_the_adapter_has_dropout_in_training(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneSpec(str(build_tiny_model("bert", tmp_path))))
    attach_lora(backbone, dropout=0.1)
    backbone.train()
    active = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.training
    ]
    assert active
    assert all("lora_dropout" in name for name in active)


def test_an_adapter_of_another_model_is_an_error(tmp_path: Path) -> None:
    save_adapter(with_random_adapter(build_tiny_model("bert", tmp_path / "base")), tmp_path / "adapter")
    wider = build_tiny_model("bert", tmp_path / "wider", hidden_size=64)
    with pytest.raises(MergeError, match=r"\(32, 32\)"):
        full_deltas(tmp_path / "adapter", load_backbone(BackboneSpec(str(wider))))


def test_an_adapter_that_is_no_plain_lora_is_an_error(tmp_path: Path) -> None:
    folder = build_tiny_model("bert", tmp_path / "base")
    save_adapter(with_random_adapter(folder), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    with pytest.raises(MergeError, match="use_dora"):
        full_deltas(tmp_path / "adapter", load_backbone(BackboneSpec(str(folder))))


def test_a_missing_adapter_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    base = load_backbone(BackboneSpec(str(build_tiny_model("bert", tmp_path / "base"))))
    with pytest.raises(ModelFolderError, match="nowhere"):
        full_deltas(tmp_path / "nowhere", base)
    with pytest.raises(TrainingError, match="No adapter"):
        save_adapter(base, tmp_path / "adapter")
