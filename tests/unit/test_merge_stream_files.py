"""Pieces of tensors, the safetensors writer, and what a merge is asked for."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stm_retriever.errors import ConfigError
from stm_training.merge.recipe import MergeRecipe, Method
from stm_training.merge.stream.memory import PeakMemory, memory_limit, numbers_per_block
from stm_training.merge.stream.naming import bare_names, find_target
from stm_training.merge.stream.pieces import Piece, cut
from stm_training.merge.stream.request import (
    METHOD_HELP,
    Asked,
    parse_member,
    parse_size,
    parse_values,
    read_request,
)
from stm_training.merge.stream.tensor_files import Stored, TensorFiles
from stm_training.merge.stream.writer import TensorFileWriter, shards, write_index


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(1, 60))
def test_pieces_are_all_numbers_once_and_in_order(shape: list[int], limit: int) -> None:
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    pieces = cut(shape, limit)
    read = [numbers[piece.index].reshape(-1) for piece in pieces]
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *read]), numbers.reshape(-1))
    assert [int(part[0]) for part in read] == [piece.offset for piece in pieces]
    assert [len(part) for part in read] == [piece.numbers for piece in pieces]
    assert all(piece.numbers <= limit for piece in pieces)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(5, 7),
        "odd": torch.randn(3).to(torch.bfloat16),
        "b": torch.randn(11, 3).double(),
        "ids": torch.arange(9),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(2, 2, 3).half(),
        "scalar": torch.tensor(3.5),
        "nothing": torch.zeros(0, 4),
        "größe": torch.randn(4),
    }


def test_what_is_written_piece_by_piece_from_threads_is_what_the_library_reads(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "in.safetensors", {"format": "pt", "note": "kept"})
    with TensorFiles([tmp_path / "in.safetensors"]) as source:
        items = list(source.stored.values())
        with (
            TensorFileWriter(tmp_path / "out.safetensors", items, source.metadata) as writer,
            ThreadPoolExecutor(4) as pool,
        ):

            def copy(job: tuple[str, Piece]) -> None:
                writer.write(job[0], job[1].offset, source.read(*job))

            jobs = [(item.name, piece) for item in items for piece in cut(item.shape, 4)]
            list(pool.map(copy, reversed(jobs)))
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with TensorFiles([tmp_path / "out.safetensors"]) as again:
        assert again.metadata == {"format": "pt", "note": "kept"}
    assert (tmp_path / "out.safetensors").stat().st_size == (tmp_path / "in.safetensors").stat().st_size


def test_every_tensor_begins_at_a_multiple_of_its_size(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "in.safetensors")
    with TensorFiles([tmp_path / "in.safetensors"]) as source:
        with TensorFileWriter(tmp_path / "out.safetensors", list(source.stored.values()), {}):
            pass
        raw = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert "__metadata__" not in header
    for name, entry in header.items():
        assert (8 + length + entry["data_offsets"][0]) % tensors()[name].element_size() == 0, name


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 60))
def test_shards_keep_the_order_and_the_size(sizes: list[int], limit: int) -> None:
    items = [Stored(str(number), (size,), "U8") for number, size in enumerate(sizes)]
    files = shards(items, limit)
    assert [item for group in files.values() for item in group] == items
    assert all(sum(item.bytes for item in group) <= limit or len(group) == 1 for group in files.values())
    assert (list(files) == ["model.safetensors"]) == (len(files) == 1)


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    write_index(tmp_path, shards([Stored("a", (3,), "F32")], 100))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "bare"),
    [
        (["embed_tokens.weight", "layers.0.mlp.weight"], {}),
        (["model.embed_tokens.weight", "model.layers.0.mlp.weight", "lm_head.weight"], {"model."}),
        (["embeddings.word_embeddings.weight", "encoder.layer.0.x", "pooler.dense.weight"], {}),
        (["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.x", "cls.bias"], {"bert."}),
        (["wte.weight", "h.0.attn.weight"], {}),
        (["transformer.wte.weight", "transformer.h.0.attn.weight"], {"transformer."}),
        (["embeddings.x", "transformer.layer.0.x"], {}),  # DistilBERT
    ],
)
def test_names_are_those_of_the_bare_model(names: list[str], bare: set[str]) -> None:
    found = bare_names(names)
    prefix = next(iter(bare), "")
    assert sorted(found.stored) == sorted(name.removeprefix(prefix) for name in names)
    assert found.heads == ({name for name in names if not name.startswith(prefix)} if prefix else set())


def test_an_adapter_on_a_model_with_a_head_finds_its_targets() -> None:
    known = {"layers.0.q_proj.weight": 0}
    assert find_target("model.layers.0.q_proj.weight", known) == "layers.0.q_proj.weight"
    assert find_target("layers.0.q_proj.weight", known) == "layers.0.q_proj.weight"
    assert find_target("layers.1.q_proj.weight", known) is None


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("members", [1, 4, 40])
def test_blocks_of_all_threads_stay_within_the_allowance(members: int, threads: int) -> None:
    numbers = numbers_per_block(members, threads, 10**9)
    assert threads * numbers * 4 * (3 * members + 8) < 150_000_000
    assert numbers_per_block(members, threads, 5000) <= 5000
    assert memory_limit(1 + members, 10**9) == (members + 3) * 10**9 + 300_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_counts_what_is_given_back_again() -> None:
    size = 40_000_000
    with PeakMemory() as memory:
        numbers = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.1)
        del numbers
        time.sleep(0.05)
    assert memory.peak is not None
    assert size <= memory.peak < 2 * size


def test_every_method_is_explained() -> None:
    assert list(METHOD_HELP) == list(get_args(Method))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=folder", ("a", "folder", None)),
        ("a=folder:0.5", ("a", "folder", 0.5)),
        ("a=C:\\models\\x", ("a", "C:\\models\\x", None)),
        ("expert:a=x=y:1e-1", ("expert:a", "x=y", 0.1)),
    ],
)
def test_members_are_read(text: str, expected: tuple[str, str, float | None]) -> None:
    assert parse_member(text) == expected


def test_a_folder_whose_name_ends_in_a_number_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m:2").mkdir()
    assert parse_member(f"a={tmp_path}/m:2") == ("a", f"{tmp_path}/m:2", None)
    assert parse_member(f"a={tmp_path}/m:2:.5") == ("a", f"{tmp_path}/m:2", 0.5)


@pytest.mark.parametrize("text", ["a", "=b", "a="])
def test_a_member_without_a_name_or_a_folder_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        parse_member(text)


def test_values_and_sizes_are_read() -> None:
    assert parse_values("--density", ".5") == 0.5
    assert parse_values("--density", "a=.5, b=1") == {"a": 0.5, "b": 1.0}
    assert [parse_size(text) for text in ("2GB", "1.5 mb", "1GiB", "77")] == [2 * 10**9, 1_500_000, 2**30, 77]
    for wrong in ("x", "a=x", "a=1,b", "a=1,a=2"):
        with pytest.raises(ConfigError, match="--density"):
            parse_values("--density", wrong)
    for wrong in ("", "GB", "-1GB", "0", "inf"):
        with pytest.raises(ConfigError, match="--shard-size"):
            parse_size(wrong)


def test_options_override_the_file_and_paths_are_the_files(tmp_path: Path) -> None:
    (tmp_path / "model-a").mkdir()
    path = tmp_path / "merge.yaml"
    path.write_text(
        "base: organisation/name\nmembers: {a: model-a, b: organisation/b}\nmethod: ties\n"
        "weights: {a: 0.5, b: 1}\ndensity: {a: 0.2, b: 0.3}\nprompts_from: a\n"
    )
    given = Asked(base="other", weights={"b": 0.7}, fields={"density": 0.9})
    request = given.over(read_request(path)).request()
    assert request.base == "other"
    assert request.members == {"a": str(tmp_path / "model-a"), "b": "organisation/b"}
    assert request.recipe == MergeRecipe(method="ties", weights={"a": 0.5, "b": 0.7}, density=0.9)
    assert request.prompts_from == "a"
    assert read_request(path).request().recipe.densities() == {"a": 0.2, "b": 0.3}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("method: [", "cannot be read"),
        ("- a", "no keys"),
        ("methd: ties", "methd"),
        ("weights: [1]", "NAME: VALUE"),
        ("weights: {a: much}", "much"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=found):
        read_request(path)


def test_weights_may_be_left_out_where_only_their_ratio_counts() -> None:
    asked = Asked("base", {"a": "x", "b": "y"}, fields={"method": "linear"})
    assert asked.request().recipe.weights == {"a": 1.0, "b": 1.0}
    asked.fields["method"] = "task_arithmetic"
    with pytest.raises(ConfigError, match=r"--weights a=0\.5,b=0\.5"):
        asked.request()
    asked.fields["method"] = "linear"
    asked.weights["a"] = 0.3
    with pytest.raises(ConfigError, match=r"\['b'\]"):
        asked.request()
    asked.weights = {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ConfigError, match=r"\['c'\]"):
        asked.request()
