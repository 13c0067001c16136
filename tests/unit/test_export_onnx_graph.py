"""The ONNX export itself: external weights, silence, and models that no graph can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stm_retriever.errors import ConfigError
from stm_retriever.onnx_session import open_session
from stm_training.export.hashes import sha256_of
from stm_training.export.onnx_graph import export_onnx
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from tests.exported_models import tiny_source
from tests.tiny_models import build_tiny_model


def fresh(family: str) -> Backbone:
    return load_backbone(BackboneSpec(source=str(tiny_source(family))))


def test_large_weights_go_into_a_file_of_the_conventional_name_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    files = export_onnx(fresh("bert"), path, external_data_above=1000)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert files == [tmp_path / "model.onnx_data"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    graph = onnx.load(path, load_external_data=False).graph
    locations = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"model.onnx_data"}

    ids = np.asarray([[2, 20, 30, 3], [2, 40, 3, 0]], dtype=np.int64)
    mask = np.asarray([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=np.int64)
    session = open_session(path, threads=1)
    found = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    with torch.inference_mode():
        wanted = fresh("bert")(torch.from_numpy(ids), torch.from_numpy(mask))[1].numpy()
    assert np.abs(found - wanted).max() <= 1e-5


def test_the_hash_of_a_graph_changes_with_its_external_weights(tmp_path: Path) -> None:
    files = [tmp_path / "model.onnx", tmp_path / "model.onnx_data"]
    for file in files:
        file.write_bytes(b"same")
    before = sha256_of(files)
    assert sha256_of(list(reversed(files))) == before
    files[1].write_bytes(b"other")
    assert sha256_of(files) != before


def test_dynamic_rope_scaling_is_refused_with_a_reason_and_a_way_out(tmp_path: Path) -> None:
    source = build_tiny_model(
        "llama",
        tmp_path / "dynamic",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    backbone = load_backbone(BackboneSpec(source=str(source)))
    with pytest.raises(ConfigError, match=r"rope_type 'dynamic' \(factor 2\.0\).*'linear' or 'yarn'"):
        export_onnx(backbone, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_that_the_exporter_cannot_trace_is_named_with_the_cause(tmp_path: Path) -> None:
    class Unruly(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: object) -> None:
            if int(input_ids.sum()) > 3:  # a branch on data
                raise ValueError("no")

    backbone = fresh("bert")
    unruly = Unruly()
    unruly.config, unruly.dtype = backbone.model.config, torch.float32
    backbone.model = unruly
    with pytest.raises(ConfigError, match="cannot trace Unruly"):
        export_onnx(backbone, tmp_path / "model.onnx")
