"""Our merges equal PEFT's where PEFT works on full deltas."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import task_arithmetic as peft_task_arithmetic
from peft.utils.merge_utils import ties as peft_ties

from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora, full_deltas, save_adapter
from stm_training.merge.apply import MergedModel
from stm_training.merge.methods import task_arithmetic, ties
from stm_training.merge.recipe import MergeRecipe
from tests.tiny_models import build_tiny_model

DELTAS = [torch.randn(12, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_task_arithmetic_equals_the_exact_concatenation_of_adapters_in_peft(
    tmp_path_factory: pytest.TempPathFactory, family: str
) -> None:
    root = tmp_path_factory.mktemp("merge")
    folder = build_tiny_model(family, root / "base")
    for seed, name in enumerate(("a", "b")):
        backbone = load_backbone(BackboneSpec(str(folder)))
        torch.manual_seed(seed)
        attach_lora(backbone, rank=4, alpha=8)
        for parameter_name, parameter in backbone.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        save_adapter(backbone, root / name)
    theirs = PeftModel.from_pretrained(
        load_backbone(BackboneSpec(str(folder))).model, root / "a", adapter_name="a"
    )
    theirs.load_adapter(root / "b", adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.6, 0.3], "merged", combination_type="cat")
    theirs.set_adapter("merged")
    expected = theirs.merge_and_unload(adapter_names=["merged"])
    ours = load_backbone(BackboneSpec(str(folder)))
    MergedModel(ours, {name: full_deltas(root / name, ours) for name in ("a", "b")}).apply(
        MergeRecipe(method="task_arithmetic", weights={"a": 0.6, "b": 0.3})
    )
    for name, value in expected.named_parameters():
        assert torch.allclose(ours.model.get_parameter(name), value, atol=1e-6), name


def test_task_arithmetic_equals_peft_on_plain_tensors() -> None:
    weights = [0.2, 0.5, 0.9]
    theirs = peft_task_arithmetic(DELTAS, torch.tensor(weights))
    assert torch.allclose(task_arithmetic(torch.zeros(12, 9), DELTAS, weights), theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_ties_equals_peft_where_all_weights_are_1(density: float) -> None:
    # With other weights PEFT divides by the number of agreeing experts, we by the sum of their weights.
    theirs = peft_ties(DELTAS, torch.ones(3), density)
    ours = ties(torch.zeros(12, 9), DELTAS, [1.0] * 3, [density] * 3)
    assert torch.allclose(ours, theirs, atol=1e-6)
