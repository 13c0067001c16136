"""Our merges equal mergekit's for every method that both have; mergekit runs in an environment of its own.

What its documentation leaves open was found by trying: `normalize` divides by the sum of the weights that take
part, which is its default for linear and TIES and has to be asked for in dare_ties; `int8_mask` only saves
memory; its SLERP goes along the chord where two models are nearly parallel, ours always along the arc.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.environments import python_of
from stm_training.merge.apply import merge_weight
from stm_training.merge.recipe import MergeRecipe
from tests.tiny_models import build_tiny_model

pytestmark = pytest.mark.slow

Weights = dict[str, Tensor]
FAMILIES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
EXPERTS = {"a": 0.02, "b": 0.03, "c": 0.3}  # size of the change; c is far enough for SLERP's arc to matter
WEIGHTS = {"a": 0.3, "b": 0.5, "c": 0.9}
DENSITY = {"a": 0.25, "b": 0.5, "c": 0.75}  # of any of these shapes, a whole number
BAND = {"a": 0.5, "b": 0.5, "c": 0.25}
GAMMA = {"a": 0.25, "b": 0.125, "c": 0.5}
SAMPLED = 0.3

RUNNER = """
import json, sys
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
for out, config in json.loads(Path(sys.argv[1]).read_text()).items():
    options = MergeOptions(copy_tokenizer=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(config), out, options=options)
"""

# Name of a case: their method and global settings, settings per model; our recipe.
TIES = {"weight": WEIGHTS, "density": DENSITY}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], MergeRecipe]] = {
    "linear": ("linear", {}, {"weight": WEIGHTS}, MergeRecipe(method="linear", weights=WEIGHTS)),
    "linear with the base": (
        "linear",
        {},
        {"weight": {"base": 0.4, **WEIGHTS}},
        MergeRecipe(method="linear", weights=WEIGHTS, base_weight=0.4),
    ),
    "task arithmetic": (
        "task_arithmetic",
        {},
        {"weight": WEIGHTS},
        MergeRecipe(method="task_arithmetic", weights=WEIGHTS),
    ),
    "ties": ("ties", {}, TIES, MergeRecipe(method="ties", weights=WEIGHTS, density=DENSITY)),
    "ties with lambda": (
        "ties",
        {"normalize": True, "lambda": 0.6, "int8_mask": True},
        TIES,
        MergeRecipe(method="ties", weights=WEIGHTS, density=DENSITY, scale=0.6),
    ),
    "dare linear, all kept": (
        "dare_linear",
        {},
        {"weight": WEIGHTS, "density": dict.fromkeys(WEIGHTS, 1.0)},
        MergeRecipe(method="dare_linear", weights=WEIGHTS),
    ),
    "dare ties, all kept": (
        "dare_ties",
        {"normalize": True},
        {"weight": WEIGHTS, "density": dict.fromkeys(WEIGHTS, 1.0)},
        MergeRecipe(method="dare_ties", weights=WEIGHTS),
    ),
    "breadcrumbs": (
        "breadcrumbs",
        {},
        {"weight": WEIGHTS, "density": BAND, "gamma": GAMMA},
        MergeRecipe(method="breadcrumbs", weights=WEIGHTS, density=BAND, gamma=GAMMA),
    ),
    "model stock of two": (
        "model_stock",
        {},
        {"weight": {"a": 1.0, "b": 1.0}},
        MergeRecipe(method="model_stock", weights={"a": 1.0, "b": 1.0}),
    ),
    "model stock of three": (
        "model_stock",
        {},
        {"weight": dict.fromkeys(WEIGHTS, 1.0)},
        MergeRecipe(method="model_stock", weights=dict.fromkeys(WEIGHTS, 1.0)),
    ),
    "slerp": (
        "slerp",
        {"t": 0.3},
        {"weight": {"base": 1.0, "c": 1.0}},
        MergeRecipe(method="slerp", weights={"c": 0.3}, base_weight=0.7),
    ),
}
SAMPLES = {"dare_linear": "sampled linear", "dare_ties": "sampled ties"}


class Problem:
    """Models of one family, and mergekit's merges of them."""

    def __init__(self, root: Path, family: str) -> None:
        self.root = root
        self.models = write_models(root, family)

    def configs(self) -> dict[str, dict[str, Any]]:
        """Mergekit's configuration by the folder to write."""
        configs = {
            name: self.config(method, settings, per_model)
            for name, (method, settings, per_model, _) in CASES.items()
        }
        for method, name in SAMPLES.items():
            configs[name] = self.config(method, {}, {"weight": {"c": 1.0}, "density": {"c": SAMPLED}})
        return {str(self.root / "merged" / name): config for name, config in configs.items()}

    def config(self, method: str, settings: dict[str, Any], per_model: dict[str, Any]) -> dict[str, Any]:
        models = [
            {
                "model": str(self.root / name),
                "parameters": {key: values[name] for key, values in per_model.items()},
            }
            for name in per_model["weight"]
        ]
        base = {} if method == "linear" else {"base_model": str(self.root / "base")}
        return {
            "merge_method": method,
            "models": models,
            "parameters": settings,
            "dtype": "float32",
            **base,
        }

    def theirs(self, name: str) -> Weights:
        weights: Weights = {}
        for file in sorted((self.root / "merged" / name).glob("*.safetensors")):
            weights.update(load_file(file))
        return weights

    def ours(self, recipe: MergeRecipe) -> Weights:
        return {
            key: merge_weight(
                base, {name: self.models[name][key] - base for name in recipe.weights}, recipe, name=key
            )
            for key, base in self.models["base"].items()
        }


def write_models(root: Path, family: str) -> dict[str, Weights]:
    """A base and experts whose changes share a part, as causal models, which is what mergekit reads."""
    folder = build_tiny_model(family, root / "source")
    base = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [FAMILIES[family]], "tie_word_embeddings": True}
    generator = torch.Generator().manual_seed(0)
    common = {name: torch.randn(value.shape, generator=generator) for name, value in base.items()}
    models = {"base": base}
    for expert, size in EXPERTS.items():
        models[expert] = {
            name: value + size * (common[name] + torch.randn(value.shape, generator=generator))
            for name, value in base.items()
        }
    for name, weights in models.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        save_file(weights, root / name / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(folder)
    return models


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    python = python_of("mergekit")
    if not python.exists():
        pytest.skip(f"mergekit's environment is not there ({python}): make bench-env")
    made = {family: Problem(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    file = tmp_path_factory.mktemp("runner") / "configs.json"
    file.write_text(json.dumps({k: v for problem in made.values() for k, v in problem.configs().items()}))
    done = subprocess.run(
        [str(python), "-c", RUNNER, str(file)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_a_merge_equals_mergekits(problems: dict[str, Problem], family: str, case: str) -> None:
    problem = problems[family]
    theirs, ours = problem.theirs(case), problem.ours(CASES[case][3])
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        assert torch.allclose(ours[name], expected, rtol=1e-6, atol=1e-6), name
        assert not torch.equal(expected, problem.models["base"][name]), name


@pytest.mark.parametrize("method", SAMPLES)
def test_dare_keeps_as_many_and_as_much_as_mergekit(problems: dict[str, Problem], method: str) -> None:
    problem = problems["qwen3"]
    recipe = MergeRecipe.model_validate({"method": method, "weights": {"c": 1.0}, "density": SAMPLED})
    for merged in (problem.theirs(SAMPLES[method]), problem.ours(recipe)):
        changes, deltas = (
            torch.cat([(weights[name] - base).flatten() for name, base in problem.models["base"].items()])
            for weights in (merged, problem.models["c"])
        )
        kept = changes.abs() > 1e-6
        spread = (SAMPLED * (1 - SAMPLED) / len(deltas)) ** 0.5
        assert abs(float(kept.float().mean()) - SAMPLED) < 5 * spread
        # What is kept makes up for what was dropped: along the delta the change is as long as the delta.
        assert float(changes @ deltas / (deltas @ deltas)) == pytest.approx(1, abs=0.06)
        assert float((changes / deltas)[kept].median()) == pytest.approx(1 / SAMPLED, rel=0.06)
