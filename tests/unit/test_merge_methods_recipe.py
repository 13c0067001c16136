"""A merge recipe: what is refused, what old files hold, and weights that change with the depth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from stm_training.merge.apply import merge_weight
from stm_training.merge.curve import count_layers, depth_of, layer_of
from stm_training.merge.methods import METHODS
from stm_training.merge.recipe import READS, MergeRecipe
from tests.tiny_models import FAMILIES, build_tiny_model

TWO = {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"method": "linear", "weights": {"a": 0.0}}, "more than 0"),
        ({"method": "linear", "weights": {"a": float("nan")}}, "finite"),
        ({"method": "linear", "weights": {"a": 1.0}, "densitty": 1}, "densitty"),
        ({"method": "linear", "weights": {}}, "weights"),
        ({"method": "linear", "weights": TWO, "density": 0.5}, r"does not read density.*'ties'"),
        ({"method": "linear", "weights": TWO, "curve": (1.0, 0.0)}, "more than 0, found 0.0 at depth 1"),
        ({"method": "task_arithmetic", "weights": TWO, "base_weight": 1}, "does not read base_weight"),
        ({"method": "ties", "weights": {"a": 1.0}, "density": 0.0}, "density of a"),
        ({"method": "ties", "weights": {"a": 1.0}, "density": {"b": 0.5}}, "no value"),
        ({"method": "ties", "weights": TWO, "gamma": 0.1}, "does not read gamma"),
        ({"method": "ties", "weights": TWO, "seed": 1}, r"does not read seed.*'dare_linear'"),
        (
            {"method": "breadcrumbs", "weights": TWO, "density": 0.9, "gamma": 0.2},
            "gamma 0.2 and density 0.9",
        ),
        ({"method": "breadcrumbs", "weights": TWO, "density": 0.9, "gamma": {"a": 0.1}}, r"gamma .*\['b'\]"),
        ({"method": "model_stock", "weights": {"a": 1.0, "b": 0.0}}, "two experts"),
        ({"method": "model_stock", "weights": TWO, "curve": (1.0, 2.0)}, "leave curve out"),
        ({"method": "slerp", "weights": {"a": 1.0, "b": -0.5}}, r"below 0.*'b'"),
        ({"method": "linear", "weights": TWO, "curve": {"c": (1.0,)}}, r"curve names \['c'\]"),
        ({"method": "linear", "weights": TWO, "curve": ()}, "at least one control point"),
        ({"method": "linear", "weights": TWO, "curve": (1.0, -1.0)}, "below 0"),
        ({"method": "linear", "weights": TWO, "base_slerp": 1.5}, "base_slerp of a"),
        ({"method": "linear", "weights": TWO, "base_slerp": {"c": 0.5}}, r"base_slerp names \['c'\]"),
        ({"method": "average", "weights": TWO}, "model_stock"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MergeRecipe.model_validate(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "ties", "weights": {"a": 0.3, "b": 0.7}, "density": {"a": 0.5, "b": 0.2}, "scale": 0.7},
        {"method": "dare_ties", "weights": TWO, "density": 0.3, "seed": 5, "base_slerp": {"a": 0.25}},
        {"method": "breadcrumbs", "weights": TWO, "density": 0.9, "gamma": 0.01},
        {"method": "linear", "weights": TWO, "base_weight": 0.5, "curve": {"b": (0.0, 1.0)}},
    ],
)
def test_a_recipe_survives_json(recipe: dict[str, object]) -> None:
    made = MergeRecipe.model_validate(recipe)
    assert MergeRecipe.model_validate_json(made.model_dump_json()) == made


def test_what_the_first_release_wrote_into_manifests_is_still_read() -> None:
    old = (
        '{"method": "ties", "weights": {"expert:a": 0.5, "expert:b": 0.7}, "base_weight": 0.0,'
        ' "density": 0.3, "scale": 0.7}'
    )
    recipe = MergeRecipe.model_validate(json.loads(old))
    assert recipe.densities() == {"expert:a": 0.3, "expert:b": 0.3}
    assert recipe.weights_for("layers.0.mlp.weight", 4) == [0.5, 0.7]
    assert recipe.positions() == {"expert:a": 1.0, "expert:b": 1.0}


def test_every_field_is_described_and_every_method_says_what_it_reads() -> None:
    assert all(field.description for field in MergeRecipe.model_fields.values())
    assert set(READS) == set(METHODS)


def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import stm_training.merge.recipe, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_in_the_names_of_every_family(tmp_path: Path, family: str) -> None:
    folder = build_tiny_model(family, tmp_path, num_hidden_layers=3, **_three_kinds(family))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert count_layers(names) == 3
    assert {layer_of(name) for name in names} == {None, 0, 1, 2}
    outside = {name: depth_of(name, 3) for name in names if layer_of(name) is None}
    assert all((depth == 0) == name.startswith("embed") for name, depth in outside.items()), outside
    assert {0.0, 1.0} <= set(outside.values())
    assert {depth_of(name, 3) for name in names if layer_of(name) == 1} == {0.5}
    prefixed = {depth_of(f"model.{name}", 3) for name in names if layer_of(name) == 2}
    assert prefixed == {1.0}


def _three_kinds(family: str) -> dict[str, object]:
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    return {"layer_types": kinds} if family in {"gemma", "modernbert"} else {}


def test_a_curve_scales_the_weights_by_depth() -> None:
    recipe = MergeRecipe(method="task_arithmetic", weights={"a": 0.5, "b": 2.0}, curve={"b": (1.0, 0.0, 0.5)})
    assert recipe.weights_for("embed_tokens.weight", 5) == [0.5, 2.0]
    assert recipe.weights_for("layers.0.mlp.weight", 5) == [0.5, 2.0]
    assert recipe.weights_for("layers.1.mlp.weight", 5) == [0.5, 1.0]
    assert recipe.weights_for("layers.2.mlp.weight", 5) == [0.5, 0.0]
    assert recipe.weights_for("layers.3.mlp.weight", 5) == [0.5, 0.5]
    assert recipe.weights_for("layers.4.mlp.weight", 5) == [0.5, 1.0]
    assert recipe.weights_for("norm.weight", 5) == [0.5, 1.0]


def test_a_curve_of_one_point_is_a_factor_and_one_layer_is_the_first() -> None:
    recipe = MergeRecipe(method="task_arithmetic", weights=TWO, curve=(0.25,))
    assert recipe.weights_for("layers.3.mlp.weight", 4) == [0.25, 0.25]
    assert depth_of("layers.0.mlp.weight", 1) == 0.0


def test_a_merge_with_a_curve_is_the_merge_with_that_layers_weights() -> None:
    base, *deltas = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    by_name = dict(zip("ab", deltas, strict=True))
    curved = MergeRecipe(method="ties", weights=TWO, density=0.5, curve={"a": (1.0, 0.0)})
    for layer, weights in enumerate(({"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 1.0}, {"a": 0.0, "b": 1.0})):
        merged = merge_weight(base, by_name, curved, name=f"layers.{layer}.mlp.weight", layers=3)
        plain = MergeRecipe(method="ties", weights=weights, density=0.5)
        assert torch.equal(merged, merge_weight(base, by_name, plain))
