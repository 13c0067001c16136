"""The parity gate lets a right graph pass and stops a wrong one, with the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stm_retriever.errors import ExportParityError
from stm_training.export.parity import native_attention, parity_gate, write_parity
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from tests.exported_models import exported


def loader(family: str, attention: str = "auto") -> Callable[[], Backbone]:
    folder = exported(family).folder
    return lambda: load_backbone(BackboneSpec(source=str(folder), attention=attention))  # type: ignore[arg-type]


def graph_of(family: str) -> Path:
    return exported(family).folder / "onnx" / "model.onnx"


def changed_graph(family: str, out: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The family's graph with its largest weight changed."""
    model = onnx.load(graph_of(family))
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    largest.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(largest).copy()), largest.name))
    onnx.save(model, out)
    return out


def test_the_gate_tries_both_paddings_and_shapes_not_seen_at_export() -> None:
    report = parity_gate(graph_of("qwen3"), loader("qwen3"))
    shapes = {(case.batch, case.length, case.padding) for case in report.cases}
    assert {(1, 1, "none"), (1, 96, "none"), (3, 33, "right"), (3, 33, "left"), (2, 96, "left")} <= shapes
    assert report.longest_checked == 96
    assert report.native is not None
    assert report.max_abs_diff <= 1e-5
    assert report.min_cosine >= 1 - 1e-5


def test_the_numbers_are_written_by_variant(tmp_path: Path) -> None:
    report = parity_gate(graph_of("bert"), loader("bert"), longest=20)
    write_parity(tmp_path / "parity.json", {"fp32": report.as_dict()})
    written = json.loads((tmp_path / "parity.json").read_text("utf-8"))["fp32"]
    assert written["max_abs_diff"] == report.max_abs_diff
    assert written["longest_checked"] == 20
    assert max(case["length"] for case in written["cases"]) == 20


def test_a_slightly_wrong_weight_is_caught_and_the_miss_is_in_the_message(tmp_path: Path) -> None:
    def nudge(weights: np.ndarray) -> np.ndarray:
        return weights + np.float32(0.01) * np.sign(weights)

    wrong = changed_graph("bert", tmp_path / "model.onnx", nudge)
    with pytest.raises(ExportParityError, match=r"limit of 0\.0001.*max abs diff \d.*min cosine 0\.9"):
        parity_gate(wrong, loader("bert"))


def test_vectors_that_are_not_finite_are_a_miss(tmp_path: Path) -> None:
    wrong = changed_graph("bert", tmp_path / "model.onnx", lambda weights: weights * np.float32("nan"))
    with pytest.raises(ExportParityError, match="max abs diff nan"):
        parity_gate(wrong, loader("bert"))


def test_a_causal_graph_does_not_pass_for_a_bidirectional_model() -> None:
    with pytest.raises(ExportParityError, match="graph against torch"):
        parity_gate(graph_of("qwen3"), loader("qwen3", "bidirectional"))


def test_a_model_whose_own_forward_attends_otherwise_is_not_compared_with_it() -> None:
    causal = loader("qwen3")()
    assert native_attention(causal) == "causal"
    causal.model.config.is_causal = False
    assert native_attention(causal) == "bidirectional"
    assert native_attention(loader("bert")()) == "bidirectional"
