"""Folders that were damaged or belong elsewhere: typed errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import ArtifactMismatchError, Embedder, ModelFolderError
from stm_retriever.cpu_features import cpu_features
from stm_retriever.folder import MANIFEST_NAME, VectorGolden, read_manifest, write_manifest
from tests.tiny_retriever import make_tiny_retriever


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_retriever(tmp_path / "model", variants=("fp32", "int8", "w8"))


def change(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_truncated_onnx_file_is_a_typed_error(folder: Path, keep: int) -> None:
    path = folder / "onnx/model.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFolderError, match=r"cannot load|takes \[\]"):
        Embedder.load(folder)


def test_an_onnx_file_of_other_bytes_is_a_typed_error(folder: Path) -> None:
    (folder / "onnx/model.onnx").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(ModelFolderError, match="cannot load"):
        Embedder.load(folder)


def test_a_missing_or_another_prompt_is_found_at_load(folder: Path) -> None:
    for prompts in ({"query": "", "document": ""}, {"query": "found: ", "document": "passage: "}):
        change(folder, prompts=prompts)
        with pytest.raises(ArtifactMismatchError, match=r"prompts were changed.*stm-train doctor"):
            Embedder.load(folder)


def test_a_damaged_tokenizer_is_a_typed_error(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelFolderError, match=r"no tokenizer\.json"):
        Embedder.load(folder)


def with_goldens(folder: Path, variant: str, *, sign: float, features: list[str]) -> None:
    manifest = read_manifest(folder)
    goldens = [
        VectorGolden(role=golden.role, text=golden.text, vector=[sign * x for x in golden.vector])
        for golden in manifest.vector_goldens
    ]
    changed = manifest.variants[variant].model_copy(update={"goldens": goldens})
    variants = {**manifest.variants, variant: changed}
    write_manifest(folder, manifest.model_copy(update={"variants": variants, "cpu_features": features}))


def test_a_quantised_variant_that_saturates_on_this_cpu_is_an_error_that_names_w8(folder: Path) -> None:
    with_goldens(folder, "int8", sign=-1, features=["amx_int8", "another", "x86_64"])
    with pytest.raises(ArtifactMismatchError, match=r"lacks .*another.*Take variant='w8'"):
        Embedder.load(folder, variant="int8")
    assert Embedder.load(folder).variant == "fp32"


def test_a_quantised_variant_that_gives_its_goldens_is_fine_on_any_cpu(folder: Path) -> None:
    with_goldens(folder, "int8", sign=1, features=["another"])
    assert Embedder.load(folder, variant="int8").encode_query(["red"]).shape == (1, 32)


def test_goldens_are_not_run_where_the_cpu_is_like_the_exporting_one(folder: Path) -> None:
    with_goldens(folder, "int8", sign=-1, features=cpu_features())
    assert Embedder.load(folder, variant="int8").encode_query(["red"]).shape == (1, 32)


def test_the_cpu_s_features_are_read_from_the_kernel_s_list(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni hypervisor\n\nprocessor : 1\n")
    assert {"avx2", "avx512_vnni"} < set(cpu_features(listed))
    assert not {"fpu", "hypervisor"} & set(cpu_features(listed))
    assert len(cpu_features(tmp_path / "none")) == 1
