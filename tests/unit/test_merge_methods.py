"""Merging full deltas: exact sums, known corner cases, and a base that comes back bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora, full_deltas, save_adapter
from stm_training.merge.apply import MergedModel
from stm_training.merge.methods import METHODS, linear, slerp, task_arithmetic, ties
from stm_training.merge.recipe import READS, MergeRecipe
from tests.tiny_models import build_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(count: int, *, seed: int = 0, scale: float = 0.1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=generator) * scale for _ in range(count)]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("qwen3", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("adapters") / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        backbone = load_backbone(BackboneSpec(str(base_folder)))
        torch.manual_seed(seed)
        attach_lora(backbone, rank=4, alpha=8)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        save_adapter(backbone, folder)
    return folders


@pytest.fixture
def base(base_folder: Path) -> Backbone:
    return load_backbone(BackboneSpec(str(base_folder)))


def state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.model.named_parameters()}


def experts_of(base: Backbone, adapters: list[Path]) -> dict[str, dict[str, Tensor]]:
    return {folder.name: full_deltas(folder, base) for folder in adapters}


def test_merging_full_deltas_is_the_exact_sum_and_not_the_mean_of_factors(
    base: Backbone, adapters: list[Path]
) -> None:
    before = state(base)
    merged = MergedModel(base, experts_of(base, adapters))
    merged.apply(MergeRecipe(method="task_arithmetic", weights={"a": 0.7, "b": 0.2}))
    factors = [load_file(folder / "adapter_model.safetensors") for folder in adapters]
    seen = 0
    for key in (name for name in factors[0] if name.endswith("lora_A.weight")):
        downs = [factor[key].double() for factor in factors]
        ups = [factor[key.replace("lora_A", "lora_B")].double() for factor in factors]
        exact = 2 * (0.7 * ups[0] @ downs[0] + 0.2 * ups[1] @ downs[1])  # alpha / rank = 2
        averaged = 2 * (0.7 * ups[0] + 0.2 * ups[1]) @ (0.7 * downs[0] + 0.2 * downs[1])
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        change = base.model.get_parameter(name).detach().double() - before[name].double()
        assert torch.allclose(change, exact, atol=1e-6)
        assert float((averaged - exact).norm() / exact.norm()) > 0.3
        seen += 1
    assert seen == 14


def test_after_100_merges_the_base_comes_back_bit_for_bit(base: Backbone, adapters: list[Path]) -> None:
    before = state(base)
    recipes = [
        MergeRecipe(method="task_arithmetic", weights={"a": 0.3, "b": 0.9}),
        MergeRecipe(method="linear", weights={"a": 1.0, "b": 2.0}, base_weight=0.5),
        MergeRecipe(method="ties", weights={"a": 0.5, "b": 0.5}, density=0.4),
        MergeRecipe(method="slerp", weights={"a": 0.5, "b": 0.5}),
        MergeRecipe(method="dare_ties", weights={"a": 0.5, "b": 0.5}, density=0.3, seed=7),
        MergeRecipe(method="breadcrumbs", weights={"a": 0.5, "b": 0.4}, density=0.8, gamma=0.1),
        MergeRecipe(method="model_stock", weights={"a": 1.0, "b": 1.0}),
        MergeRecipe(method="ties", weights={"b": 0.5}, density=0.4, base_slerp=0.5, curve=(0.5, 1.0)),
    ]
    with MergedModel(base, experts_of(base, adapters)) as merged:
        for recipe in itertools.islice(itertools.cycle(recipes), 100):
            merged.apply(recipe)
        merged.apply(recipes[0])
        after_many = state(base)
        merged.restore()
        merged.apply(recipes[0])
        assert all(torch.equal(after_many[name], value) for name, value in state(base).items())
        assert any(not torch.equal(before[name], value) for name, value in after_many.items())
    assert all(torch.equal(before[name], value) for name, value in state(base).items())


def test_what_is_kept_between_merges_never_changes_one(base: Backbone, adapters: list[Path]) -> None:
    experts = experts_of(base, adapters)
    used = MergedModel(base, experts)
    for weights in ({"b": 1.0, "a": 0.3}, {"a": 0.6}, {"a": 0.5, "b": 0.9}):
        for method in sorted(set(METHODS) - {"model_stock"}):
            recipe = MergeRecipe(method=method, weights=weights)  # type: ignore[arg-type]
            if "density" in READS[recipe.method]:
                recipe = recipe.model_copy(update={"density": 0.4})
            used.apply(recipe)
            after = state(base)
            used.restore()
            fresh = MergedModel(base, experts)
            fresh.apply(recipe)
            assert all(torch.equal(after[name], value) for name, value in state(base).items()), recipe
            fresh.restore()


def test_the_base_comes_back_when_scoring_fails(base: Backbone, adapters: list[Path]) -> None:
    before = state(base)
    with (
        pytest.raises(RuntimeError, match="scoring"),
        MergedModel(base, experts_of(base, adapters)) as merged,
    ):
        merged.apply(MergeRecipe(method="linear", weights={"a": 1.0, "b": 1.0}))
        raise RuntimeError("scoring")
    assert all(torch.equal(before[name], value) for name, value in state(base).items())


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"model_stock"}))
def test_weights_1_and_0_give_back_the_member_bit_for_bit(
    base: Backbone, adapters: list[Path], method: str
) -> None:
    experts = experts_of(base, adapters)
    before = state(base)
    MergedModel(base, experts).apply(
        MergeRecipe(method=method, weights={"a": 1.0, "b": 0.0})  # type: ignore[arg-type]
    )
    for name, delta in experts["a"].items():
        assert torch.equal(base.model.get_parameter(name), before[name] + delta)


def test_linear_counts_the_base_as_a_member() -> None:
    base, *deltas = tensors(3)
    merged = linear(base, deltas, [1.0, 1.0], base_weight=2.0)
    members = [base, base, base + deltas[0], base + deltas[1]]
    assert torch.allclose(merged, torch.stack(members).mean(dim=0), atol=1e-7)


def test_linear_and_ties_do_not_depend_on_the_order_of_the_members() -> None:
    base, *deltas = tensors(5)
    weights, densities = [0.1, 0.4, 0.3, 0.9], [0.2, 0.5, 0.9, 0.4]
    for order in itertools.permutations(range(4)):
        moved = ([deltas[i] for i in order], [weights[i] for i in order])
        assert torch.allclose(linear(base, *moved), linear(base, deltas, weights), atol=1e-6)
        again = ties(base, *moved, [densities[i] for i in order])
        assert torch.allclose(again, ties(base, deltas, weights, densities), atol=1e-6)


def test_ties_of_one_expert_at_density_1_is_that_expert_whatever_its_weight() -> None:
    base, delta = tensors(2)
    for weight in (0.2, 1.0, 3.0):
        assert torch.allclose(ties(base, [delta], [weight], [1.0]), base + delta, atol=1e-6)


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    base = torch.zeros(4)
    first = torch.tensor([4.0, -3.0, 2.0, 0.1])
    second = torch.tensor([2.0, 5.0, -0.1, -0.2])
    merged = ties(base, [first, second], [1.0, 1.0], [0.75, 0.5])
    # Trimmed: (4, -3, 2, 0) and (2, 5, 0, 0); signs of the sums: +, +, +, none.
    assert merged.tolist() == [3.0, 5.0, 2.0, 0.0]
    assert ties(base, [first, second], [3.0, 1.0], [0.75, 0.5]).tolist() == [3.5, -3.0, 2.0, 0.0]
    assert ties(base, [first, second], [1.0, 1.0], [0.75, 0.5], scale=0.5).tolist() == [1.5, 2.5, 1.0, 0.0]


def test_ties_keeps_the_stated_share_of_numbers() -> None:
    delta = torch.arange(1.0, 101.0)
    merged = ties(torch.zeros(100), [delta], [1.0], [0.3])
    assert int((merged != 0).sum()) == 30
    assert merged[:70].abs().max() == 0


def test_slerp_goes_along_the_arc_and_keeps_the_length() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = slerp(first, second, 0.5)
    assert torch.allclose(half, torch.tensor([0.5**0.5, 0.5**0.5]), atol=1e-6)
    assert torch.equal(slerp(first, second, 0.0), first)
    assert torch.equal(slerp(first, second, 1.0), second)
    assert torch.allclose(slerp(first, 2 * first, 0.5), 1.5 * first)  # parallel: the chord


def test_slerp_of_one_expert_goes_from_the_base(base: Backbone, adapters: list[Path]) -> None:
    experts = experts_of(base, adapters[:1])
    before = state(base)
    MergedModel(base, experts).apply(MergeRecipe(method="slerp", weights={"a": 1.0}, base_weight=3.0))
    for name, delta in experts["a"].items():
        expected = slerp(before[name], before[name] + delta, 0.25)
        assert torch.allclose(base.model.get_parameter(name), expected, atol=1e-7)


def test_merging_a_bfloat16_base_computes_in_float32_and_casts_last(
    base_folder: Path, adapters: list[Path]
) -> None:
    half = load_backbone(BackboneSpec(str(base_folder)), dtype=torch.bfloat16)
    experts = experts_of(half, adapters)
    before = state(half)
    MergedModel(half, experts).apply(MergeRecipe(method="task_arithmetic", weights={"a": 0.3, "b": 0.3}))
    for name in experts["a"]:
        exact = task_arithmetic(before[name], [experts["a"][name], experts["b"][name]], [0.3, 0.3])
        assert exact.dtype == torch.float32
        assert torch.equal(half.model.get_parameter(name), exact.bfloat16())


def test_an_expert_that_leaves_a_weight_alone_counts_as_no_change(
    base: Backbone, adapters: list[Path]
) -> None:
    experts = experts_of(base, adapters)
    name = next(iter(experts["b"]))
    del experts["b"][name]
    before = state(base)
    MergedModel(base, experts).apply(MergeRecipe(method="linear", weights={"a": 1.0, "b": 1.0}))
    assert torch.allclose(base.model.get_parameter(name), before[name] + 0.5 * experts["a"][name], atol=1e-7)


def test_nan_in_an_adapter_is_an_error_that_names_expert_and_weight(
    base: Backbone, adapters: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    config = (adapters[0] / "adapter_config.json").read_text()
    (tmp_path / "a" / "adapter_config.json").write_text(config)
    factors = load_file(adapters[0] / "adapter_model.safetensors")
    factors["base_model.model.layers.1.mlp.up_proj.lora_B.weight"][0, 0] = float("nan")
    save_file(factors, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=r"'a' has 32 of 2048 .*layers\.1\.mlp\.up_proj\.weight"):
        MergedModel(base, {"a": full_deltas(tmp_path / "a", base)})


@pytest.mark.parametrize(
    ("deltas", "words"),
    [
        ({"no.such.weight": torch.zeros(2, 2)}, "no such weight"),
        ({"norm.weight": torch.zeros(3)}, r"\(3,\).*\(32,\)"),
    ],
)
def test_experts_that_do_not_fit_the_base_are_an_error(
    base: Backbone, deltas: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(MergeError, match=words):
        MergedModel(base, {"odd": deltas})


def test_unknown_and_absent_experts_are_errors(base: Backbone, adapters: list[Path]) -> None:
    with pytest.raises(MergeError, match="no expert"):
        MergedModel(base, {})
    merged = MergedModel(base, experts_of(base, adapters))
    with pytest.raises(MergeError, match=r"\['c'\].*\['a', 'b'\]"):
        merged.apply(MergeRecipe(method="linear", weights={"c": 1.0}))
