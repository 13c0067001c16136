"""A retriever folder appears whole or not at all, and the model it was made from stays as it was."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError, ExportParityError
from stm_training.export import goldens
from stm_training.export.export import export_model
from stm_training.export.folder_writer import write_retriever_folder
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.lora import attach_lora
from tests.exported_models import TEXTS, exported, tiny_source


def backbone_of(family: str) -> Backbone:
    return load_backbone(BackboneSpec(source=str(tiny_source(family))))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained() -> Backbone:
    """A model in memory whose weights lie nowhere on disk: an adapter was trained and merged into it."""
    backbone = backbone_of("bert")
    attach_lora(backbone, rank=2)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    backbone.model = backbone.model.merge_and_unload()
    return backbone


def test_a_merged_model_in_memory_is_written_and_stays_as_it_was(trained: Backbone, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    settings = copy.deepcopy(trained.model.config.to_dict())
    out = tmp_path / "merged"
    arguments = {
        "name": "merged",
        "base": {"name": "tiny-bert", "hub_name": "someone/tiny-bert"},
        "experts": [{"name": "questions", "pairs": 12}],
        "merge": {"method": "linear", "weights": {"base": 0.5, "questions": 0.5}},
        "data": [{"name": "handbook", "licence": "cc0-1.0"}],
        "licences": ["apache-2.0", "cc0-1.0"],
        "metrics": {"ndcg@10": 0.5},
    }
    manifest = write_retriever_folder(trained, out, **arguments)

    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.state_dict().items())
    assert trained.model.config.to_dict() == settings
    embedder = Embedder.load(out, threads=1)
    found = embedder.encode_query(list(goldens.VECTOR_TEXTS))
    assert np.abs(found - goldens.torch_vectors(trained, "query")).max() <= 1e-5
    untrained = Embedder.load(exported("bert").folder, threads=1).encode_query(TEXTS)
    assert np.abs(embedder.encode_query(TEXTS) - untrained).max() > 1e-3
    for key in ("base", "experts", "merge", "data", "licences", "metrics"):
        assert getattr(manifest, key) == arguments[key]
    card = (out / "README.md").read_text("utf-8")
    assert "base_model: someone/tiny-bert" in card
    assert "base_model_relation: merge" in card
    assert "`handbook` (licence: cc0-1.0)" in card

    first = contents(out)
    export_model(str(out), out, overwrite=True)  # keeps where it comes from, and its figures
    assert contents(out) == first, "the same model gives the same bytes"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_miss_of_the_parity_gate_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_graph(_: Backbone, path: Path, **__: object) -> list[Path]:
        shutil.copy(exported("bert").folder / "onnx" / "model.onnx", path)
        return []

    monkeypatch.setattr("stm_training.export.folder_writer.export_onnx", copy_graph)
    out = tmp_path / "retriever"
    out.mkdir()
    (out / "stm_manifest.json").write_text("{}")
    with pytest.raises(ExportParityError, match="max abs diff"):
        write_retriever_folder(backbone_of("bert"), out, name="x", base={}, overwrite=True, limit=0.0)
    assert contents(tmp_path) == {"retriever/stm_manifest.json": b"{}"}


def test_a_crash_on_the_way_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("stm_training.export.folder_writer.export_onnx", crash)
    with pytest.raises(OSError, match="no space"):
        write_retriever_folder(backbone_of("bert"), tmp_path / "out", name="x", base={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_are_not_ours_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not empty and holds no stm_manifest\.json"):
        write_retriever_folder(backbone_of("bert"), out, name="x", base={}, overwrite=overwrite)
    assert contents(out) == {"chapter1.txt": b"years of work"}


def test_a_retriever_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "stm_manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="--overwrite"):
        write_retriever_folder(backbone_of("bert"), tmp_path, name="x", base={})


def test_an_adapter_that_was_not_merged_is_refused(tmp_path: Path) -> None:
    backbone = backbone_of("bert")
    attach_lora(backbone, rank=2)
    with pytest.raises(ConfigError, match=r"adapter tensors.*Merge the adapter"):
        write_retriever_folder(backbone, tmp_path / "out", name="x", base={})
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_this_version_cannot_write_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp32, fp16, w8, int8, w4 is needed"):
        write_retriever_folder(
            backbone_of("bert"), tmp_path / "out", name="x", base={}, variants=("fp32", "int3")
        )
    assert list(tmp_path.iterdir()) == []
