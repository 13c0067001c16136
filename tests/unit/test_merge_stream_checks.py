"""Members that do not belong to the base are refused by name and shape, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stm_retriever.errors import ConfigError, MergeError, ModelFolderError, StmError
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.stream import StreamedMerge, merge_folders
from tests.merge_folders import (
    SINGLE,
    build_adapter,
    build_base,
    build_member,
    change_json,
    change_tensor,
    load_weights,
    shard,
)

HALF = MergeRecipe(method="task_arithmetic", weights={"a": 0.5})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("base") / "base", "bert")


@pytest.fixture
def member(tmp_path: Path, base: Path) -> Path:
    return build_member(base, tmp_path / "a", 1)


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return build_adapter(base, tmp_path / "a", 1, only="attention")


def refused(base: Path, member: Path, out: Path, kind: type[StmError] = MergeError) -> str:
    with pytest.raises(kind) as caught:
        merge_folders(base, {"a": member}, HALF, out)
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if "partial" in path.name] == []
    assert "'a'" in str(caught.value) or str(member) in str(caught.value)
    return str(caught.value)


def tokenizer(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def swap_two_tokens(document: dict) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["asthma"], vocabulary["fever"] = 77, 78


def test_another_architecture(tmp_path: Path, base: Path) -> None:
    said = refused(base, build_base(tmp_path / "a", "qwen3"), tmp_path / "out")
    assert "model_type bert and qwen3" in said


def test_another_width_is_said_in_the_words_of_the_configuration(tmp_path: Path, base: Path) -> None:
    said = refused(base, build_base(tmp_path / "a", "bert", hidden_size=64), tmp_path / "out")
    assert "hidden_size 32 and 64" in said


def test_another_vocabulary(tmp_path: Path, base: Path) -> None:
    said = refused(base, build_base(tmp_path / "a", "bert", vocab_size=500), tmp_path / "out")
    assert "vocab_size 400 and 500" in said


def test_another_attention(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    member = build_member(base, tmp_path / "a", 1)
    change_json(member / "config.json", is_causal=False)
    assert "attention causal and bidirectional" in refused(base, member, tmp_path / "out")


def test_another_tokenizer_with_as_many_tokens(tmp_path: Path, base: Path, member: Path) -> None:
    tokenizer(member, swap_two_tokens)
    said = refused(base, member, tmp_path / "out")
    assert "tokenizers" in said
    assert "'fever'" in said


def test_another_end_of_texts(tmp_path: Path, base: Path, member: Path) -> None:
    tokenizer(member, lambda document: document.pop("post_processor"))
    said = refused(base, member, tmp_path / "out")
    assert "post_processor" in said
    assert "stm-train export" in said


def test_an_adapters_own_tokenizer_is_compared_too(tmp_path: Path, base: Path, adapter: Path) -> None:
    shutil.copy(base / "tokenizer.json", adapter)
    tokenizer(adapter, swap_two_tokens)
    assert "tokenizers" in refused(base, adapter, tmp_path / "out")


def test_padding_and_truncation_make_no_other_tokenizer(tmp_path: Path, base: Path, member: Path) -> None:
    tokenizer(member, lambda document: document.update(padding=None, truncation=None))
    merge_folders(base, {"a": member}, HALF, tmp_path / "out")


def test_a_checkpoint_without_tokenizer_gets_the_bases(tmp_path: Path, base: Path, member: Path) -> None:
    (member / "tokenizer.json").unlink()
    merge_folders(base, {"a": member}, HALF, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("other", ["pooling_mode_cls_token", "pooling_mode_lasttoken"])
def test_another_pooling(tmp_path: Path, base: Path, member: Path, other: str) -> None:
    change_json(member / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, **{other: True})
    assert "pooling mean" in refused(base, member, tmp_path / "out")


def test_members_that_disagree_on_the_pooling_where_the_base_is_silent(tmp_path: Path, base: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    (plain / "modules.json").unlink()
    paths = {name: build_member(base, tmp_path / name, seed) for seed, name in enumerate("ab")}
    change_json(
        paths["b"] / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True
    )
    recipe = MergeRecipe(method="linear", weights={"a": 1, "b": 1})
    with pytest.raises(MergeError, match="a: mean; b: cls"):
        StreamedMerge(plain, paths, recipe)


def test_a_missing_an_extra_and_a_differing_tensor_are_all_named(
    tmp_path: Path, base: Path, member: Path
) -> None:
    change_tensor(member, "encoder.layer.0.output.dense.bias", None)
    change_tensor(member, "encoder.layer.9.output.dense.bias", torch.zeros(32))
    change_tensor(member, "encoder.layer.1.output.dense.bias", torch.zeros(33))
    said = refused(base, member, tmp_path / "out")
    assert "1 missing: encoder.layer.0.output.dense.bias" in said
    assert "1 extra: encoder.layer.9.output.dense.bias" in said
    assert "1 of another shape: encoder.layer.1.output.dense.bias (32,) and (33,)" in said


def test_a_missing_pooler_is_no_matter_and_is_said(tmp_path: Path, base: Path, member: Path) -> None:
    for part in ("weight", "bias"):
        change_tensor(member, f"pooler.dense.{part}", None)
    plan = merge_folders(base, {"a": member}, HALF, tmp_path / "out")
    assert "pooler.dense.bias" in plan.notes[0]
    found, start = load_weights(tmp_path / "out"), load_weights(base)
    assert torch.equal(found["pooler.dense.weight"], start["pooler.dense.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nan_and_infinity_are_found_while_streaming_and_nothing_stays(
    tmp_path: Path, base: Path, member: Path, value: float, method: str
) -> None:
    name = "encoder.layer.1.output.dense.weight"
    weight = load_weights(member)[name]
    weight[-1, -1] = value
    change_tensor(member, name, weight)
    recipe = MergeRecipe.model_validate({"method": method, "weights": {"a": 1.0}})
    with StreamedMerge(base, {"a": member}, recipe, block=500, shard_size=40_000) as merge:
        assert len(merge.plan.files) > 1
        with pytest.raises(MergeError, match=f"'a' has 1 of .*{name}"):
            merge.write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_nan_in_the_base_is_said_to_be_the_bases(tmp_path: Path, base: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    adapter = build_adapter(base, tmp_path / "a", 1, only="attention")
    change_tensor(broken, "embeddings.LayerNorm.bias", torch.full((32,), float("nan")))
    with pytest.raises(MergeError, match="The base has 32 of 32 numbers"):
        merge_folders(broken, {"a": adapter}, HALF, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_in_an_adapter(tmp_path: Path, base: Path, adapter: Path) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("nan")
    save_file(factors, adapter / "adapter_model.safetensors")
    assert "NaN" in refused(base, adapter, tmp_path / "out")


def test_a_result_beyond_float16_is_no_infinity_in_a_file(tmp_path: Path, base: Path) -> None:
    small = tmp_path / "half"
    shutil.copytree(base, small)
    name = "embeddings.LayerNorm.bias"
    change_tensor(small, name, torch.full((32,), 60_000.0, dtype=torch.float16))
    member = build_member(small, tmp_path / "a", 1)
    change_tensor(member, name, torch.full((32,), 65_000.0, dtype=torch.float16))
    recipe = MergeRecipe(method="task_arithmetic", weights={"a": 4.0})
    with pytest.raises(MergeError, match="The merged model has 32 of 32"):
        merge_folders(small, {"a": member}, recipe, tmp_path / "out")


def test_large_finite_numbers_whose_sum_overflows_are_merged(
    tmp_path: Path, base: Path, member: Path
) -> None:
    name = "embeddings.LayerNorm.bias"
    change_tensor(member, name, torch.full((32,), 1e38))
    merge_folders(base, {"a": member}, HALF, tmp_path / "out")
    assert torch.allclose(load_weights(tmp_path / "out")[name], torch.full((32,), 5e37))


def test_prompts_that_differ_must_be_chosen(tmp_path: Path, base: Path, member: Path) -> None:
    change_json(member / "config_sentence_transformers.json", prompts={"query": "ask: ", "document": ""})
    said = refused(base, member, tmp_path / "out")
    assert "'find: '" in said
    assert "'ask: '" in said
    for name, query in (("base", "find: "), ("a", "ask: ")):
        merge_folders(base, {"a": member}, HALF, tmp_path / name / "out", prompts_from=name)
        stored = json.loads((tmp_path / name / "out" / "config_sentence_transformers.json").read_text())
        assert stored["prompts"]["query"] == query
    with pytest.raises(ConfigError, match=r"'c'.*'base', 'a'"):
        merge_folders(base, {"a": member}, HALF, tmp_path / "out", prompts_from="c")


def test_a_plain_base_takes_layout_and_prompts_from_a_member(
    tmp_path: Path, base: Path, member: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", SINGLE):
        shutil.copy(base / name, plain)
    assert "--prompts-from" in refused(plain, member, tmp_path / "out")
    merge_folders(plain, {"a": member}, HALF, tmp_path / "out", prompts_from="a")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    change_json(member / "config_sentence_transformers.json", prompts={})
    plan = merge_folders(plain, {"a": member}, HALF, tmp_path / "silent")
    assert "mean pooling" in plan.notes[0]
    assert not (tmp_path / "silent" / "modules.json").exists()


def test_an_adapter_of_another_model(tmp_path: Path, base: Path) -> None:
    wide = build_base(tmp_path / "wide", "bert", hidden_size=64)
    adapter = build_adapter(wide, tmp_path / "a", 1, only="attention", base_model_name_or_path="a-wide-model")
    said = refused(base, adapter, tmp_path / "out")
    assert "(64, 64) (base: (32, 32))" in said
    assert "a-wide-model" in said
    other = build_adapter(build_base(tmp_path / "qwen"), tmp_path / "b" / "a", 1)
    assert "base: none" in refused(base, other, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"rank_pattern": {"query": 8}}, "rank_pattern"),
        ({"bias": "all"}, "bias all"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": None}, "no r"),
    ],
)
def test_adapters_that_are_no_plain_lora(
    tmp_path: Path, base: Path, adapter: Path, settings: dict[str, object], found: str
) -> None:
    change_json(adapter / "adapter_config.json", **settings)
    assert found in refused(base, adapter, tmp_path / "out")


def test_an_adapter_with_more_than_factors(tmp_path: Path, base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.pooler.dense.weight": torch.zeros(32, 32)}, path)
    assert "pooler.dense.weight" in refused(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_scale_of_an_adapter_follows_its_settings(tmp_path: Path, base: Path, rescaled: bool) -> None:
    adapter = build_adapter(base, tmp_path / "a", 1, only="key", use_rslora=rescaled)  # rank 4, alpha 8
    merge_folders(
        base, {"a": adapter}, MergeRecipe(method="task_arithmetic", weights={"a": 1}), tmp_path / "out"
    )
    name = "encoder.layer.0.attention.self.key"
    factors = load_file(adapter / "adapter_model.safetensors")
    up, down = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
    expected = load_weights(base)[f"{name}.weight"] + (4 if rescaled else 2) * (up @ down)
    assert torch.allclose(load_weights(tmp_path / "out")[f"{name}.weight"], expected, atol=1e-6)


def test_a_transposed_adapter_is_turned(tmp_path: Path, base: Path) -> None:
    adapter = build_adapter(base, tmp_path / "a", 1, only="intermediate")
    straight = tmp_path / "straight"
    recipe = MergeRecipe(method="task_arithmetic", weights={"a": 1})
    merge_folders(base, {"a": adapter}, recipe, straight)
    turned = tmp_path / "turned"
    shutil.copytree(base, turned)
    name = "encoder.layer.0.intermediate.dense.weight"
    for layer in range(2):
        key = name.replace("0", str(layer))
        change_tensor(turned, key, load_weights(base)[key].T.contiguous())
    change_json(adapter / "adapter_config.json", fan_in_fan_out=True)
    for block in (40, None):
        with StreamedMerge(turned, {"a": adapter}, recipe, block=block) as merge:
            merge.write(tmp_path / f"out-{block}")
        found = load_weights(tmp_path / f"out-{block}")[name]
        assert torch.equal(found.T, load_weights(straight)[name])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / SINGLE).unlink(), "neither"),
    "pickled weights": (lambda folder: (folder / SINGLE).rename(folder / "pytorch_model.bin"), "Pickled"),
    "cut off": (
        lambda folder: (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:5000]),
        "safetensors",
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "broken configuration": (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
    "quantised": (
        lambda folder: change_json(folder / "config.json", quantization_config={"bits": 4}),
        "quantised",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_member_is_named(tmp_path: Path, base: Path, member: Path, name: str) -> None:
    damage, found = DAMAGE[name]
    damage(member)
    assert found in refused(base, member, tmp_path / "out", ModelFolderError)


def test_shards_that_are_missing_or_lie_elsewhere_are_named(tmp_path: Path, base: Path, member: Path) -> None:
    shard(member)
    (member / "model-00002-of-00003.safetensors").unlink()
    said = refused(base, member, tmp_path / "out", ModelFolderError)
    assert "model-00002-of-00003.safetensors" in said
    index = member / "model.safetensors.index.json"
    change_json(index, weight_map={"a": "../base/model.safetensors"})
    assert "../base" in refused(base, member, tmp_path / "out", ModelFolderError)
    index.write_text('{"weight_map": ["a"]}')
    refused(base, member, tmp_path / "out", ModelFolderError)


def test_an_adapter_cannot_be_the_base(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(ModelFolderError, match="adapter without a model"):
        StreamedMerge(adapter, {"a": adapter}, HALF)


def test_a_folder_that_is_there_is_not_lost(tmp_path: Path, base: Path, member: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"no merge\.json"):
        merge_folders(base, {"a": member}, HALF, mine, overwrite=True)
    with pytest.raises(ConfigError, match=r"no merge\.json"):
        merge_folders(base, {"a": member}, HALF, member, overwrite=True)
    merge_folders(base, {"a": member}, HALF, tmp_path / "out")
    before = load_weights(tmp_path / "out")
    with pytest.raises(ConfigError, match="--overwrite"):
        merge_folders(base, {"a": member}, HALF, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"'a'.*is read"):  # a merge as the member of the next
        merge_folders(base, {"a": tmp_path / "out"}, HALF, tmp_path / "out", overwrite=True)
    other = MergeRecipe(method="task_arithmetic", weights={"a": 0.25})
    merge_folders(base, {"a": member}, other, tmp_path / "out", overwrite=True)
    after = load_weights(tmp_path / "out")
    assert not torch.equal(before["embeddings.LayerNorm.bias"], after["embeddings.LayerNorm.bias"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine", "out"]


def test_weights_and_members_must_be_the_same(base: Path, member: Path) -> None:
    with pytest.raises(ConfigError, match=r"\['a', 'b'\].*\['a'\]"):
        StreamedMerge(base, {"a": member, "b": member}, HALF)
    with pytest.raises(ConfigError, match="base_weight"):
        StreamedMerge(base, {"base": member}, MergeRecipe(method="linear", weights={"base": 1}))
