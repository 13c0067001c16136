"""The retriever folder: manifest, fingerprint, where a name leads to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import ConfigError, ModelFolderError
from stm_retriever.folder import (
    MANIFEST_NAME,
    Prompts,
    fingerprint,
    read_manifest,
    resolve_folder,
    sha256_file,
    variant_file,
    write_manifest,
)
from tests.tiny_retriever import make_tiny_retriever

SAME: dict[str, Any] = {
    "weights_sha256": "a" * 64,
    "tokenizer_sha256": "b" * 64,
    "prompts": Prompts(query="q: ", document="d: "),
    "pooling": "mean",
    "normalize": True,
    "attention": "bidirectional",
    "eos_token_id": 3,
    "max_length": 64,
}


def test_the_fingerprint_is_stable_across_releases() -> None:
    # Written down, since an index made today must open tomorrow.
    assert fingerprint(**SAME) == "sha256:a907691395d667d1d50fe9aad51d796c1a3c3099987161a84d75c9e1c8d67416"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", "c" * 64),
        ("tokenizer_sha256", "c" * 64),
        ("prompts", Prompts(query="q:", document="d: ")),
        ("prompts", Prompts(query="d: ", document="q: ")),
        ("pooling", "last"),
        ("normalize", False),
        ("attention", "causal"),
        ("eos_token_id", None),
        ("max_length", 65),
    ],
)
def test_everything_that_changes_a_vector_changes_the_fingerprint(key: str, value: Any) -> None:
    assert fingerprint(**SAME) != fingerprint(**{**SAME, key: value})


def test_a_manifest_comes_back_as_it_was_written(tiny_onnx_retriever: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_onnx_retriever)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_a_write_that_fails_leaves_the_old_manifest(
    tiny_onnx_retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(tiny_onnx_retriever)
    write_manifest(tmp_path, manifest)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path, manifest.model_copy(update={"name": "other"}))
    assert read_manifest(tmp_path).name == manifest.name
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_a_folder_without_manifest_names_the_export_command(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"has no stm_manifest\.json.*stm-train export"):
        read_manifest(tmp_path)
    with pytest.raises(ModelFolderError, match=r"is not a folder.*stm-train export"):
        read_manifest(tmp_path / "nowhere")


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema_version", 99), "schema version 99.*reads up to 1.*pip install --upgrade"),
        (_set("surprise", 1), "surprise: Extra inputs"),
        (_set("pooling", "max"), "pooling: Input should be"),
        (_set("variants", {"fp32": {"file": "../x", "sha256": ""}}), "must not lead out"),
        (_set("variants", {"fp32": {"file": "/etc/passwd", "sha256": ""}}), "relative to the folder"),
        (lambda content: content.pop("prompts"), "prompts: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_says_why(
    tiny_onnx_retriever: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads((tiny_onnx_retriever / MANIFEST_NAME).read_text("utf-8"))
    change(content)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[]"])
def test_a_broken_manifest_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ModelFolderError, match=re.escape(str(tmp_path))):
        read_manifest(tmp_path)


def test_a_variant_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model", variants=("fp32", "w8"))
    manifest = read_manifest(folder)
    assert variant_file(folder, manifest, "w8") == folder / "onnx/model_w8.onnx"
    with pytest.raises(ConfigError, match=r"'int8'.*it has fp32, w8.*--variants int8"):
        variant_file(folder, manifest, "int8")


def test_a_missing_onnx_file_names_the_export_command(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    (folder / "onnx/model.onnx").unlink()
    with pytest.raises(ModelFolderError, match=r"has no 'onnx/model\.onnx'.*stm-train export"):
        variant_file(folder, read_manifest(folder), "fp32")
    without = read_manifest(folder).model_copy(update={"variants": {}})
    with pytest.raises(ModelFolderError, match=r"has no ONNX file.*stm-train export"):
        variant_file(folder, without, "fp32")


def test_an_existing_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("org/name") == Path("org/name")
    with pytest.raises(ConfigError, match=r"revision='main'.*has no revisions"):
        resolve_folder("org/name", revision="main")


@pytest.mark.parametrize(
    "name", ["./model", "/no/such/model", "model", "a/b/c", "~/nowhere-at-all", "../model"]
)
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def reached(*_: object, **__: object) -> str:
        raise AssertionError("looked up on the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", reached)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(ModelFolderError, match="No folder"):
        resolve_folder(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="No folder"):
        resolve_folder("runs/demo")
    with pytest.raises(ModelFolderError, match="No folder"):
        resolve_folder(Path("org/name"))


def test_a_hub_name_goes_to_the_hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[object, dict[str, object]]] = []

    def download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve_folder("org/name", revision="v1", local_files_only=True, patterns=["onnx/*"])
    assert found == tmp_path
    assert calls == [
        ("org/name", {"revision": "v1", "local_files_only": True, "allow_patterns": ["onnx/*"]}),
    ]


def test_a_hub_name_that_is_not_cached_says_where_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelFolderError, match="the local Hugging Face cache did not give it"):
        resolve_folder("org/name", local_files_only=True)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(ConfigError, match="name is empty"):
        resolve_folder("")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.touch()
    with pytest.raises(ModelFolderError, match="is a file; a model is a folder"):
        resolve_folder(file)


def test_files_are_hashed_as_everyone_hashes_them(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    assert sha256_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
