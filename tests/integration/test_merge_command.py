"""The whole command ``stm-train merge``: what it prints, writes and refuses, and what a kill leaves."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, MergeError, ModelFolderError
from stm_training.commands import merge
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.request import METHOD_HELP
from stm_training.merge.stream.stream import merge_folders
from tests.merge_folders import (
    PROMPTS,
    build_adapter,
    build_base,
    build_member,
    change_json,
    change_tensor,
    load_weights,
)

_MAIN = """
import argparse, sys
from stm_training.commands import merge
parser = argparse.ArgumentParser()
merge.add_parser(parser.add_subparsers())
raise SystemExit(merge.run(parser.parse_args(["merge", *sys.argv[1:]])))
"""


def parse(*options: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    merge.add_parser(parser.add_subparsers())
    return parser.parse_args(["merge", *map(str, options)])


def run(*options: object) -> int:
    return merge.run(parse(*options))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``base``, a full member ``a`` and an adapter ``b``, where a run would keep it."""
    base = build_base(tmp_path / "base", "bert")
    build_member(base, tmp_path / "a", 1)
    build_adapter(base, tmp_path / "b" / "adapter", 2, only="attention")
    return tmp_path


def test_options_and_a_recipe_file_give_the_same_model(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = ("--member", f"a={folders}/a:0.5", "--member", f"b={folders}/b:0.3")
    out = folders / "one"
    assert run("--base", folders / "base", *members, "--method", "ties", "--density", ".4", "--out", out) == 0
    printed = capsys.readouterr().out
    assert f"0.5   a: {folders}/a (model)" in printed
    assert "(adapter)" in printed
    assert "density 0.4" in printed
    assert "memory below" in printed
    assert f"Wrote {out} in " in printed
    recipe = folders / "merge.yaml"
    recipe.write_text(
        "base: base\nmembers: {a: a, b: b}\nmethod: ties\nweights: {a: 0.5, b: 0.9}\ndensity: 0.4\n"
    )
    assert run("--recipe", recipe, "--weights", "b=.3", "--out", folders / "two") == 0
    assert run("--recipe", out / "merge.json", "--out", folders / "three", "--shard-size", "30KB") == 0
    one = load_weights(folders / "one")
    expected = MergeRecipe(method="ties", weights={"a": 0.5, "b": 0.3}, density=0.4)
    paths = {"a": folders / "a", "b": folders / "b" / "adapter"}
    merge_folders(folders / "base", paths, expected, folders / "expected")
    for name in ("two", "three", "expected"):
        other = load_weights(folders / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    assert len(list((folders / "three").glob("model-*.safetensors"))) > 1


def test_a_dry_run_says_the_plan_and_writes_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folders.rglob("*"))
    options = ("--member", f"b={folders}/b", "--method", "linear", "--base-weight", "0.5")
    assert run("--base", folders / "base", *options, "--out", folders / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "39 tensors" in printed
    assert "8 merged" in printed
    assert "Nothing was written" in printed
    assert sorted(folders.rglob("*")) == before


def test_the_export_serves_the_merged_weights(folders: Path) -> None:
    options = ("--member", f"a={folders}/a", "--method", "linear", "--base-weight", "1")
    common = ("--base", folders / "base", *options)
    assert run(*common, "--out", folders / "served", "--export") == 0
    assert run(*common, "--out", folders / "plain") == 0
    embedder = Embedder.load(folders / "served")
    assert embedder.manifest.prompts.model_dump() == PROMPTS
    assert embedder.manifest.merge is not None
    assert embedder.manifest.merge["weights"] == {"a": 1.0}
    assert embedder.manifest.base["name"] == "base"
    served, plain = load_weights(folders / "served"), load_weights(folders / "plain")
    assert all(torch.equal(value, plain[name]) for name, value in served.items())
    assert np.isfinite(embedder.encode_query(["a headache"])).all()
    assert sorted(path.name for path in folders.iterdir()) == ["a", "b", "base", "plain", "served"]


def test_the_help_explains_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    printed = capsys.readouterr().out
    for name, line in METHOD_HELP.items():
        assert f"{name:<16} {line}" in printed


def other_tokenizer(folders: Path) -> None:
    change_json(folders / "a" / "tokenizer.json", post_processor=None)


def other_prompts(folders: Path) -> None:
    change_json(folders / "a" / "config_sentence_transformers.json", prompts={"query": "ask: "})


def missing_tensor(folders: Path) -> None:
    change_tensor(folders / "a", "encoder.layer.0.output.dense.bias", None)


def not_a_number(folders: Path) -> None:
    change_tensor(folders / "a", "encoder.layer.0.output.dense.bias", torch.full((32,), float("nan")))


def other_architecture(folders: Path) -> None:
    change_json(folders / "a" / "config.json", model_type="roberta")


REFUSALS = {
    "tokenizer": (other_tokenizer, MergeError, "post_processor"),
    "prompts": (other_prompts, MergeError, "--prompts-from"),
    "tensor": (missing_tensor, MergeError, r"encoder\.layer\.0\.output\.dense\.bias"),
    "nan": (not_a_number, MergeError, "32 of 32 numbers NaN"),
    "architecture": (other_architecture, MergeError, "model_type bert and roberta"),
    "no folder": (lambda folders: (folders / "a").rename(folders / "c"), ModelFolderError, "no model folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_members_that_do_not_fit_are_refused_and_leave_nothing(folders: Path, name: str) -> None:
    change, kind, found = REFUSALS[name]
    change(folders)
    before = sorted(folders.iterdir())
    with pytest.raises(kind, match=found):
        run(
            "--base",
            folders / "base",
            "--member",
            f"a={folders}/a",
            "--method",
            "linear",
            "--out",
            folders / "o",
        )
    assert sorted(folders.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--method", "linear"), "--base is missing"),
        (("--base", "x", "--method", "linear"), "--member is missing"),
        (("--base", "x", "--member", "a=y"), "--method is missing"),
        (("--base", "x", "--member", "a=y", "--member", "a=z", "--method", "linear"), "'a' is given twice"),
        (("--base", "x", "--member", "a=y", "--method", "linear", "--weights", ".5"), "whose weight"),
        (
            ("--base", "x", "--member", "a=y", "--method", "linear", "--density", ".5"),
            "does not read density",
        ),
        (("--base", "x", "--member", "a=y", "--method", "ties", "--density", "1.5"), "above 0 and at most 1"),
        (("--base", "x", "--member", "a=y", "--method", "linear", "--curve", "a"), "--curve"),
        (("--base", "x", "--member", "a=y", "--method", "linear", "--threads", "0"), "--threads"),
        (("--base", "x", "--member", "a=y", "--method", "linear", "--shard-size", "none"), "--shard-size"),
        (("--recipe", "no-such-file.yaml"), "no-such-file.yaml"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path: Path, options: tuple[str, ...], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        run(*options, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def big_model(folder: Path, numbers: int) -> Path:
    """The tiny model with one large tensor beside its own, as an embedding of many words would be."""
    base = build_base(folder, "bert", dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(numbers // 64, 64, generator=generator).to(torch.bfloat16)
    change_tensor(base, "encoder.big.weight", big)
    return base


def start(*options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_merge_leaves_no_half_folder_and_the_next_one_works(
    tmp_path: Path, with_signal: signal.Signals
) -> None:
    base = big_model(tmp_path / "base", 4_000_000)
    build_member(base, tmp_path / "a", 1)
    out = tmp_path / "out"
    options = ("--base", base, "--member", f"a={tmp_path}/a", "--method", "dare_ties", "--density", ".5")
    process = start(*options, "--out", out, "--threads", "1")
    partial = tmp_path / ".out.partial" / "model.safetensors"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(with_signal)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not out.exists()
    assert (tmp_path / ".out.partial").exists() == (with_signal == signal.SIGKILL)
    assert run(*options, "--out", out) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "out"]
    assert load_weights(out).keys() == load_weights(base).keys()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "breadcrumbs", "model_stock"])
def test_memory_stays_below_the_promise_whatever_the_tensor(tmp_path: Path, method: str) -> None:
    base = big_model(tmp_path / "base", 60_000_000)  # 120 MB in one tensor; float32 of all four: 960 MB
    names = ("a", "b", "c")
    for seed, name in enumerate(names):
        build_member(base, tmp_path / name, seed)
    members = [option for name in names for option in ("--member", f"{name}={tmp_path}/{name}")]
    density = ("--density", ".3") if method in ("ties", "dare_ties", "breadcrumbs") else ()
    weights = ("--weights", "a=.5,b=.3,c=.2")
    options = ("--base", base, *members, "--method", method, *weights, *density, "--out", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *map(str, options), "--threads", "2"], stdout=subprocess.PIPE, text=True
    )
    printed = process.communicate(timeout=280)[0]
    assert process.returncode == 0
    peak = float(printed.rsplit("at most ", 1)[1].split(" MB")[0])
    # far below (models + 2) x largest + 300 MB = 1020 MB: not even one float32 copy of the tensor fits in
    assert peak < 200


def test_checkpoints_of_one_run_are_averaged(folders: Path) -> None:
    for step in (100, 20):  # oldest first is by number, not by name
        build_member(folders / "base", folders / "run" / f"checkpoint-{step}", step)
    options = ("--base", folders / "base", "--checkpoints", folders / "run")
    assert run(*options, "--out", folders / "mean") == 0
    assert run(*options, "--decay", 0.9, "--out", folders / "moving") == 0
    old, new = (load_weights(folders / "run" / f"checkpoint-{step}") for step in (20, 100))
    for name, value in load_weights(folders / "mean").items():
        torch.testing.assert_close(value, (old[name] + new[name]) / 2)
    for name, value in load_weights(folders / "moving").items():
        torch.testing.assert_close(value, 0.9 * old[name] + 0.1 * new[name])
    with pytest.raises(ConfigError, match="leave these out"):
        run(*options, "--method", "ties", "--out", folders / "no")
