"""OpenVINO beside ONNX Runtime: same vectors, same independence of batch mates, nothing sent."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stm_retriever import ConfigError, Embedder, MissingExtraError, ModelFolderError, ProviderError
from stm_retriever.encoding import openvino as openvino_module
from tests.exported_models import TEXTS, exported
from tests.tiny_retriever import make_tiny_retriever

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed (extra [openvino])"
)
FAMILIES = ["bert", "qwen3"]


@needs_openvino
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_gives_onnx_runtime_s_vectors(family: str) -> None:
    folder = exported(family).folder
    made = Embedder.load(folder, engine="openvino", threads=2)
    assert made.engine == "openvino"
    reference = Embedder.load(folder, threads=1)
    np.testing.assert_allclose(made.encode_query(TEXTS), reference.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(made.encode_document(TEXTS), reference.encode_document(TEXTS), atol=1e-5)


@needs_openvino
@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_s_vectors_do_not_depend_on_batch_mates_or_the_padding_side(family: str) -> None:
    made = Embedder.load(exported(family).folder, engine="openvino", threads=1)
    alone = np.concatenate([made.encode_document([text]) for text in TEXTS])
    np.testing.assert_allclose(made.encode_document(TEXTS[::-1])[::-1], alone, atol=2e-6)
    if family != "bert":  # its positions are counted from the left
        engine = made._open().runner.engine
        input_ids, mask = made.tokenizer.pad(made.tokenizer.encode(TEXTS, "document"), "left")
        found = engine.run(input_ids, mask, beside_others=False)
        np.testing.assert_allclose(found, alone, atol=1e-5)


@needs_openvino
def test_bfloat16_is_asked_for_by_name_and_is_close() -> None:
    folder = exported("bert").folder
    try:
        made = Embedder.load(folder, engine="openvino-bf16", threads=1)
    except ProviderError as error:
        assert "no bfloat16 instructions" in str(error)
        pytest.skip("this CPU has no bfloat16 instructions")
    found, reference = made.encode_document(TEXTS), Embedder.load(folder, threads=1).encode_document(TEXTS)
    assert (found * reference).sum(axis=1).min() > 0.999
    assert np.abs(found - reference).max() > 1e-7, "it ran in float32"


@needs_openvino
def test_bfloat16_without_the_instructions_is_an_error(
    tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino_module, "_import_quietly", lambda: SimpleNamespace(Core=Core))
    with pytest.raises(ProviderError, match="has no bfloat16 instructions"):
        Embedder.load(tiny_onnx_retriever, engine="openvino-bf16")


@needs_openvino
def test_openvino_on_a_gpu_and_damaged_files_are_typed_errors(tmp_path: Path) -> None:
    folder = make_tiny_retriever(tmp_path / "model")
    with pytest.raises(ConfigError, match="runs on the CPU"):
        Embedder.load(folder, engine="openvino", device="cuda")
    onnx = folder / "onnx/model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:500])
    with pytest.raises(ModelFolderError, match="OpenVINO cannot load"):
        Embedder.load(folder, engine="openvino")


@needs_openvino
def test_openvino_s_telemetry_is_not_even_loaded_and_nothing_is_sent(tiny_onnx_retriever: Path) -> None:
    script = """
import sys
tried = []
sys.addaudithook(lambda event, arguments: event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen")
                 and tried.append(event))
from stm_retriever import Embedder
Embedder.load(sys.argv[1], engine="openvino", threads=1).encode_query(["red"])
import time; time.sleep(0.5)
assert not [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
assert not tried, tried
"""
    subprocess.run([sys.executable, "-c", script, str(tiny_onnx_retriever)], check=True, timeout=120)


def test_without_openvino_the_error_names_the_extra(
    tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"stm-retriever\[openvino\]"):
        Embedder.load(tiny_onnx_retriever, engine="openvino")
