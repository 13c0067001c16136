"""``stm-train export`` and what it takes over from the source folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stm_retriever import Embedder
from stm_retriever.errors import DataError
from stm_retriever.folder import read_manifest
from stm_training.cli import main
from stm_training.export.licences import card_licences
from stm_training.export.machine import versions
from tests.exported_models import PROMPTS, tiny_source


def test_the_command_exports_a_folder_with_the_options_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "my-encoder"
    shutil.copytree(tiny_source("bert"), source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n", encoding="utf-8")
    out = tmp_path / "retriever"
    options = ["--query-prompt", "Q: ", "--pooling", "cls", "--max-length", "40"]
    assert main(["export", str(source), "--out", str(out), *options]) == 0
    assert "pooling cls" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert manifest.name == "retriever"
    assert manifest.prompts.query == "Q: "
    assert manifest.prompts.document == PROMPTS.document, "the other prompt stays the folder's"
    assert (manifest.pooling, manifest.max_length) == ("cls", 40)
    assert manifest.licences == ["mit"]
    assert manifest.base == {"name": "my-encoder"}
    assert Embedder.load(out, threads=1).max_length == 40


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["export", str(tiny_source("bert")), "--out", str(tmp_path), "--variants", "int3"]) == 2
    assert "--variants fp32,w8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_taken_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "none of ours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "licences"),
    [
        ("---\nlicense: apache-2.0\n---\ntext", ["apache-2.0"]),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", ["mit", "cc0-1.0"]),
        ("---\ntags: [a]\n---\n", []),
        ("# No front matter\n\n---\nlicense: mit\n---\n", []),
        ("", []),
    ],
)
def test_the_licence_is_read_from_the_card_s_front_matter(
    tmp_path: Path, card: str, licences: list[str]
) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert card_licences(tmp_path) == licences


def test_front_matter_that_is_not_yaml_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n", encoding="utf-8")
    with pytest.raises(DataError, match="--licence NAME"):
        card_licences(tmp_path)


def test_versions_name_what_takes_part_in_an_export() -> None:
    assert {"stm-retriever", "python", "torch", "onnxruntime"} <= set(versions())
