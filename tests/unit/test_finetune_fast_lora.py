"""The fast LoRA layer computes what PEFT's layer computes, and leaves to PEFT what it cannot."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from stm_training.finetune import fast_lora
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.fast_lora import FastLoraLinear, lora_linear
from stm_training.finetune.lora import attach_lora
from tests.tiny_models import FAMILIES, SENTENCES, build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two layers, the second without bias, as a model for PEFT."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.second = nn.Linear(40, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Both layers."""
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


def adapted(*, fast: bool, dropout: float = 0.0) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["first", "second"])
    if fast:
        config._register_custom_module({nn.Linear: FastLoraLinear})
    model = get_peft_model(Net(), config)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
        if hasattr(parameter, "data"):
            parameter.data = parameter.data.clone()
    for module in model.modules():
        if isinstance(module, PeftLinear):
            module.cast_input_dtype_enabled = False
    return model


def step(model: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradients of the input and of every adapter weight."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    gradients = {"x": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad
    return y.detach(), gradients


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24)])
def test_output_and_gradients_are_pefts(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, our_gradients = step(adapted(fast=True), x)
    theirs, their_gradients = step(adapted(fast=False), x)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_under_autocast_it_is_as_close_to_float32_as_peft_is() -> None:
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    exact, exact_gradients = step(adapted(fast=False), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, our_gradients = step(adapted(fast=True), x)
        theirs, their_gradients = step(adapted(fast=False), x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert float((ours - exact).norm()) <= 1.1 * float((theirs - exact).norm())
    for name, gradient in exact_gradients.items():
        assert our_gradients[name].dtype == torch.float32
        error, their_error = ((g[name] - gradient).norm() for g in (our_gradients, their_gradients))
        assert float(error) <= 1.5 * float(their_error), name


def test_a_float32_base_and_one_stored_in_bfloat16_give_the_same_under_autocast() -> None:
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
    stored = adapted(fast=True)
    for module in stored.modules():
        if isinstance(module, FastLoraLinear):
            module.base_layer.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, first_gradients = step(adapted(fast=True), x)
        second, second_gradients = step(stored, x)
    assert torch.equal(first, second)
    assert all(torch.equal(first_gradients[name], second_gradients[name]) for name in first_gradients)


def test_dropout_is_pefts_own_and_none_in_evaluation() -> None:
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    results = []
    for fast in (True, False):
        model = adapted(fast=fast, dropout=0.5)
        torch.manual_seed(9)
        results.append(step(model.train(), x)[0])
    assert torch.equal(*results)
    evaluated = adapted(fast=True, dropout=0.5).eval()(x)
    assert not torch.allclose(results[0], evaluated)
    torch.testing.assert_close(evaluated, adapted(fast=False)(x))


def test_a_switched_off_or_merged_adapter_is_pefts_business() -> None:
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    model = adapted(fast=True)
    torch.manual_seed(3)
    base = Net()(x)
    updated = model(x)
    with model.disable_adapter():
        assert torch.allclose(model(x), base, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(model(x), updated, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), updated, rtol=1e-4, atol=1e-5)


def test_only_what_learns_gets_a_gradient() -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    lora_linear(x, weight, bias, down, up, 0.5).sum().backward()
    assert x.grad is None and weight.grad is None and bias.grad is None
    assert down.grad is not None and up.grad is not None


def test_a_tensor_is_cast_once_for_layers_in_a_row_and_again_when_it_changed() -> None:
    last = fast_lora._LastCast()
    x = torch.randn(3, 4)
    first = last.to(x, torch.bfloat16)
    assert last.to(x, torch.bfloat16) is first
    x.add_(1)
    assert torch.equal(last.to(x, torch.bfloat16), x.to(torch.bfloat16))
    x.requires_grad_()
    assert last.to(x, torch.bfloat16).requires_grad
    with torch.no_grad():
        assert not last.to(x, torch.bfloat16).requires_grad
    assert last.to(x.detach().clone(), torch.bfloat16) is not last.to(x, torch.bfloat16)


def test_a_cast_lives_no_longer_than_its_source() -> None:
    last = fast_lora._LastCast()
    x = torch.randn(3, 4)
    cast = weakref.ref(last.to(x, torch.bfloat16))
    assert cast() is not None
    del x
    gc.collect()
    assert cast() is None


def test_a_source_that_ends_with_the_last_cast_does_not_take_the_next_one_along() -> None:
    last = fast_lora._LastCast()
    held = [torch.randn(3, 4)]
    weakref.finalize(last.to(held[0], torch.bfloat16), held.clear)  # as a graph that ends with its result
    assert last.to(torch.randn(3, 4), torch.bfloat16) is not None


def adapted_backbone(folder: Path, *, ours: bool) -> Backbone:
    backbone = load_backbone(BackboneSpec(str(folder)))
    if ours:
        torch.manual_seed(1)
        attach_lora(backbone, rank=4, alpha=8, dropout=0.0)
    else:
        reference = adapted_backbone(folder, ours=True).model.peft_config["default"]
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=reference.target_modules, task_type="FEATURE_EXTRACTION"
        )
        torch.manual_seed(1)
        backbone.model = get_peft_model(backbone.model, config)
    torch.manual_seed(2)
    for name, parameter in sorted(backbone.named_parameters()):
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return backbone.train()


def backbone_step(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    texts = [*SENTENCES[:4], "gout", "iron tablets", "a b"]
    ids, mask = backbone.tokenizer.pad(backbone.tokenizer.encode(texts, "document"))
    vectors = backbone(torch.from_numpy(ids), torch.from_numpy(mask))[1]
    (vectors[0] @ vectors[1:].T).square().sum().backward()
    return vectors.detach(), {
        name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_model_has_the_vectors_and_gradients_of_the_same_model_under_peft(
    tmp_path: Path, family: str
) -> None:
    folder = build_tiny_model(family, tmp_path)
    ours, our_gradients = backbone_step(adapted_backbone(folder, ours=True))
    theirs, their_gradients = backbone_step(adapted_backbone(folder, ours=False))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=2e-5 * scale, msg=name)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning")
def test_layers_that_are_stored_transposed_stay_with_peft(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    build_tiny_model("gpt_neox", tmp_path)
    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=160, eos_token_id=0, bos_token_id=0
    )
    GPT2Model(config).save_pretrained(tmp_path)
    backbone = load_backbone(BackboneSpec(str(tmp_path)))
    before = backbone_vectors(backbone)
    attach_lora(backbone, rank=2, dropout=0.0)
    layers = [module for module in backbone.model.modules() if isinstance(module, PeftLinear)]
    assert layers and not any(isinstance(layer, FastLoraLinear) for layer in layers)
    assert torch.allclose(backbone_vectors(backbone.eval()), before, atol=1e-6)
    assert backbone_step(backbone.train())[1]


def backbone_vectors(backbone: Backbone) -> Tensor:
    ids, mask = backbone.tokenizer.pad(backbone.tokenizer.encode(list(SENTENCES[:3]), "query"))
    with torch.no_grad():
        vectors: Tensor = backbone(torch.from_numpy(ids), torch.from_numpy(mask))[1]
    return vectors


def test_a_copy_of_an_adapted_backbone_stands_on_its_own(tmp_path: Path) -> None:
    backbone = adapted_backbone(build_tiny_model("bert", tmp_path), ours=True)
    expected = backbone_vectors(backbone)
    twin = copy.deepcopy(backbone)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert torch.equal(backbone_vectors(twin), expected)
    assert not torch.allclose(backbone_vectors(backbone), expected, atol=1e-3)
