"""Merging folders on disk: the same numbers as in memory, whatever the blocks, files and types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from stm_retriever.errors import MergeError
from stm_training.finetune.backbone import BackboneSpec, load_backbone
from stm_training.finetune.encode import encode_texts
from stm_training.finetune.lora import full_deltas
from stm_training.merge.curve import count_layers
from stm_training.merge.methods.blocks import Block
from stm_training.merge.methods.plain import merge_block
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.stream import StreamedMerge, merge_folders
from tests.merge_folders import (
    PROMPTS,
    build_adapter,
    build_base,
    build_member,
    change_tensor,
    load_weights,
    rewrite,
    shard,
)
from tests.tiny_models import SENTENCES

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.4}
RECIPES = {
    "linear": MergeRecipe(method="linear", weights=WEIGHTS, base_weight=0.2),
    "slerp": MergeRecipe(method="slerp", weights=WEIGHTS, base_weight=0.2),
    "task_arithmetic": MergeRecipe(method="task_arithmetic", weights=WEIGHTS),
    "ties": MergeRecipe(method="ties", weights=WEIGHTS, density={"a": 0.3, "b": 0.5, "c": 0.9}, scale=0.7),
    "dare_linear": MergeRecipe(method="dare_linear", weights=WEIGHTS, density=0.5, seed=3),
    "dare_ties": MergeRecipe(method="dare_ties", weights=WEIGHTS, density=0.5, seed=3),
    "breadcrumbs": MergeRecipe(method="breadcrumbs", weights=WEIGHTS, density=0.5, gamma=0.05),
    "model_stock": MergeRecipe(method="model_stock", weights=WEIGHTS),
    "towards the base first": MergeRecipe(method="ties", weights=WEIGHTS, density=0.5, base_slerp=0.75),
    "by depth": MergeRecipe(method="linear", weights=WEIGHTS, base_weight=0.2, curve=(0.2, 1.0)),
}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two full members of which one is in shards, and an adapter."""
    home = tmp_path_factory.mktemp("folders")
    base = build_base(home / "base", dtype=request.param)
    folders = {
        "base": base,
        "a": build_member(base, home / "a", 1),
        "b": build_member(base, home / "b", 2),
        "c": build_adapter(base, home / "c", 3),
    }
    shard(folders["b"])
    return folders


def members(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in folders.items() if name != "base"}


def in_memory(folders: dict[str, Path], recipe: MergeRecipe) -> dict[str, Tensor]:
    """Every parameter in one block, from whole tensors and the definition of LoRA."""
    base = load_weights(folders["base"])
    full = {name: load_weights(folders[name]) for name in ("a", "b")}
    factors = load_file(folders["c"] / "adapter_model.safetensors")
    merged = {}
    for name, weight in base.items():
        start = weight.float()
        own = [full["a"][name].float(), full["b"][name].float(), start]
        deltas = [own[0] - start, own[1] - start, torch.zeros_like(start)]
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in factors:
            down, up = (factors[f"{module}.lora_{part}.weight"].double() for part in "AB")
            deltas[2] = (2 * (up @ down)).float()
            block = Block(start, deltas, members=[own[0], own[1], None])
        else:
            block = Block(start, deltas, members=own)
        layers = count_layers(base)
        merged[name] = merge_block(block, recipe, name=name, layers=layers).to(weight.dtype)
    return merged


@pytest.mark.parametrize("name", RECIPES)
def test_the_written_weights_are_those_of_a_merge_in_memory_bit_for_bit(
    tmp_path: Path, folders: dict[str, Path], name: str
) -> None:
    expected = in_memory(folders, RECIPES[name])
    for block, threads in ((211, 2), (999, 1), (None, 2)):
        out = tmp_path / f"out-{block}"
        with StreamedMerge(
            folders["base"], members(folders), RECIPES[name], block=block, threads=threads
        ) as merge:
            merge.write(out)
        found = load_weights(out)
        assert found.keys() == expected.keys()
        assert all(found[key].dtype == value.dtype for key, value in expected.items())
        wrong = [key for key, value in expected.items() if not torch.equal(found[key], value)]
        assert wrong == [], f"block {block}"


def test_an_adapter_comes_out_as_the_trained_model_has_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    recipe = MergeRecipe(method="task_arithmetic", weights={"c": 1.0})
    merge_folders(folders["base"], {"c": folders["c"]}, recipe, tmp_path / "out")
    base = load_backbone(BackboneSpec(str(folders["base"])))
    deltas = full_deltas(folders["c"], base)
    found, start = load_weights(tmp_path / "out"), load_weights(folders["base"])
    assert len(deltas) == 14
    for name, weight in start.items():
        expected = weight.float() + deltas[name] if name in deltas else weight.float()
        # the product's last bits depend on how it is summed up; bf16 rounds to 8 bits
        limit = 2e-6 if weight.dtype == torch.float32 else 2e-2
        assert torch.allclose(found[name].float(), expected, atol=limit), name
        assert (name in deltas) != torch.equal(found[name], weight)


def test_a_member_alone_comes_back_bit_for_bit(tmp_path: Path, folders: dict[str, Path]) -> None:
    recipe = MergeRecipe(method="linear", weights={"a": 1.0, "b": 0.0})
    chosen = {name: folders[name] for name in recipe.weights}
    merge_folders(folders["base"], chosen, recipe, tmp_path / "out")
    found = load_weights(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in load_weights(folders["a"]).items())


def test_shards_hold_no_more_than_asked_and_load_everywhere(tmp_path: Path, folders: dict[str, Path]) -> None:
    from sentence_transformers import SentenceTransformer

    plan = merge_folders(
        folders["base"], members(folders), RECIPES["ties"], tmp_path / "out", shard_size=40_000
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == [path.name for path in files] == sorted(plan.files)
    assert index["metadata"]["total_size"] == plan.write_bytes
    for path in files:
        with safe_open(path, "pt") as file:
            assert [name for name, place in index["weight_map"].items() if place == path.name] == sorted(
                file.keys()
            )
        tensors = load_file(path)
        assert sum(value.nbytes for value in tensors.values()) <= 40_000 or len(tensors) == 1
    backbone = load_backbone(BackboneSpec(str(tmp_path / "out")))
    assert (backbone.pooling, backbone.prompts.model_dump()) == ("last", PROMPTS)
    outside = SentenceTransformer(
        str(tmp_path / "out"),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    )
    assert outside.prompts["query"] == PROMPTS["query"]
    weights = dict(outside[0].auto_model.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in backbone.model.named_parameters())
    theirs = outside.encode(list(SENTENCES[:3]), prompt_name="query")
    assert np.isfinite(theirs).all()


@pytest.mark.parametrize("family", ["bert", "gpt_neox"])
def test_the_merged_folder_embeds_as_its_weights_in_memory_do(tmp_path: Path, family: str) -> None:
    base = build_base(tmp_path / "base", family)
    paths = {
        "a": build_member(base, tmp_path / "a", 1, size=0.02),
        "b": build_member(base, tmp_path / "b", 2),
    }
    recipe = MergeRecipe(method="linear", weights={"a": 1, "b": 3})
    merge_folders(base, paths, recipe, tmp_path / "out")
    expected = load_backbone(BackboneSpec(str(base)))
    left, right = load_weights(paths["a"]), load_weights(paths["b"])
    for name, parameter in expected.model.named_parameters():
        parameter.data = (left[name] + 3 * right[name]) / 4
    found = load_backbone(BackboneSpec(str(tmp_path / "out")))
    texts = list(SENTENCES[:4])
    vectors = [encode_texts(model, texts, "document", precision="fp32") for model in (found, expected)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


def test_buffers_and_types_stay_as_the_base_stores_them(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "bert")
    ids = torch.arange(7)
    change_tensor(base, "embeddings.position_ids", ids)
    change_tensor(base, "a_scalar", torch.tensor(2.0))
    change_tensor(base, "nothing", torch.zeros(0, 3, dtype=torch.float16))
    name = "encoder.layer.0.output.dense.weight"
    change_tensor(base, name, load_weights(base)[name].half())
    member = build_member(base, tmp_path / "a", 1)
    change_tensor(member, "embeddings.position_ids", None)  # newer releases save none
    change_tensor(member, name, load_weights(member)[name].float())
    recipe = MergeRecipe(method="task_arithmetic", weights={"a": 0.5})
    merge_folders(base, {"a": member}, recipe, tmp_path / "out")
    found, start, end = (load_weights(folder) for folder in (tmp_path / "out", base, member))
    assert torch.equal(found["embeddings.position_ids"], ids)
    assert {key: value.dtype for key, value in found.items()} == {
        key: value.dtype for key, value in start.items()
    }
    expected = (start[name].float() + 0.5 * (end[name] - start[name].float())).half()
    assert torch.equal(found[name], expected)
    assert float(found["a_scalar"]) == pytest.approx((2 + float(end["a_scalar"])) / 2)
    assert found["nothing"].shape == (0, 3)


@pytest.mark.parametrize("method", ["dare_linear", "linear"])
def test_a_base_with_a_language_model_head_takes_members_without(tmp_path: Path, method: str) -> None:
    bare = build_base(tmp_path / "bare")
    member = build_member(bare, tmp_path / "a", 1)
    adapter = build_adapter(bare, tmp_path / "c", 3)
    headed = build_base(tmp_path / "headed")
    tensors = {f"model.{name}": value for name, value in load_weights(bare).items()}
    rewrite(headed, tensors | {"lm_head.weight": torch.ones(400, 32)})
    density = {} if method == "linear" else {"density": 0.5}
    recipe = MergeRecipe.model_validate({"method": method, "weights": {"a": 0.5, "c": 0.5}, **density})
    expected = merge_folders(bare, {"a": member, "c": adapter}, recipe, tmp_path / "one")
    merge_folders(headed, {"a": member, "c": adapter}, recipe, tmp_path / "two")
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert len(expected.merged) == len(one)
    assert torch.equal(two.pop("lm_head.weight"), torch.ones(400, 32))
    # also where numbers are drawn by name
    assert {name.removeprefix("model.") for name in two} == set(one)
    assert all(torch.equal(two[f"model.{name}"], value) for name, value in one.items())


def test_a_tied_head_that_is_stored_again_stays_the_embedding(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", tie_word_embeddings=True)
    tensors = {f"model.{name}": value for name, value in load_weights(base).items()}
    rewrite(base, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    member = build_member(base, tmp_path / "a", 1)
    change_tensor(member, "lm_head.weight", None)
    recipe = MergeRecipe(method="dare_linear", weights={"a": 1.0}, density=0.5)
    merge_folders(base, {"a": member}, recipe, tmp_path / "out")
    found = load_weights(tmp_path / "out")
    assert not torch.equal(found["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_the_record_says_what_was_merged_and_repeats(tmp_path: Path, folders: dict[str, Path]) -> None:
    for out in ("one", "two"):
        merge_folders(folders["base"], members(folders), RECIPES["ties"], tmp_path / out)
    record = (tmp_path / "one" / "merge.json").read_text()
    assert record == (tmp_path / "two" / "merge.json").read_text()
    document = json.loads(record)
    assert MergeRecipe.model_validate(document["recipe"]) == RECIPES["ties"]
    assert {name: entry["kind"] for name, entry in document["members"].items()} == {
        "a": "model",
        "b": "model",
        "c": "adapter",
    }
    assert len(document["members"]["b"]["files"]) == 3
    assert len({entry["sha256"] for entry in [document["base"], *document["members"].values()]}) == 4


def test_files_about_other_weights_stay_behind(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    for name in ("README.md", "onnx/model.onnx", "stm_manifest.json.bak", "LICENSE", "merges.txt", "code.py"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("a file")
    member = build_member(base, tmp_path / "a", 1)
    merge_folders(base, {"a": member}, MergeRecipe(method="linear", weights={"a": 1}), tmp_path / "out")
    assert sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    ) == [
        "1_Pooling",
        "1_Pooling/config.json",
        "2_Normalize",
        "LICENSE",
        "config.json",
        "config_sentence_transformers.json",
        "merge.json",
        "merges.txt",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_model_in_a_folder_of_its_own_stays_there(tmp_path: Path) -> None:
    flat = build_base(tmp_path / "flat", "bert")
    base = tmp_path / "base"
    (base / "0_Transformer").mkdir(parents=True)
    for path in flat.iterdir():
        inside = path.name.startswith(("config.json", "model.", "tokenizer", "sentence_bert"))
        path.rename((base / "0_Transformer" if inside else base) / path.name)
    modules = json.loads((base / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (base / "modules.json").write_text(json.dumps(modules))
    member = build_member(build_base(tmp_path / "again", "bert"), tmp_path / "a", 1)
    merge_folders(base, {"a": member}, MergeRecipe(method="linear", weights={"a": 1}), tmp_path / "out")
    assert (tmp_path / "out" / "0_Transformer" / "model.safetensors").is_file()
    backbone = load_backbone(BackboneSpec(str(tmp_path / "out")))
    assert backbone.max_length == 96
    expected = load_weights(member)
    assert all(torch.equal(value, expected[name]) for name, value in backbone.model.named_parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_an_interrupted_merge_leaves_nothing(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    written: list[int] = []

    def stop(count: int) -> None:
        written.append(count)
        if len(written) == 5:
            raise error

    with StreamedMerge(folders["base"], members(folders), RECIPES["ties"], block=500, threads=1) as merge:
        with pytest.raises((KeyboardInterrupt, MergeError)):
            merge.write(tmp_path / "out", progress=stop)
        assert list(tmp_path.iterdir()) == []
        merge.write(tmp_path / "out")  # what a killed run leaves beside it does not disturb the next
    assert load_weights(tmp_path / "out").keys() == load_weights(folders["base"]).keys()
    assert len(written) == 5


def test_torch_has_its_threads_back(tmp_path: Path, folders: dict[str, Path]) -> None:
    torch.set_num_threads(2)
    merge_folders(folders["base"], members(folders), RECIPES["linear"], tmp_path / "out")
    assert torch.get_num_threads() == 2
