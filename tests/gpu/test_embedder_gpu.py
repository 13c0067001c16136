"""The embedder on CUDA: the CPU's vectors, large batches, the device that was asked for."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from stm_retriever import Embedder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider (onnxruntime-gpu has)")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


TEXTS = [f"{'a word ' * (number % 60)}number {number}" for number in range(500)]


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_cuda_gives_the_cpu_s_vectors_whatever_the_batch(family: str) -> None:
    from tests.exported_models import exported

    folder = exported(family).folder
    expected = Embedder.load(folder).encode_document(TEXTS)
    made = Embedder.load(folder, device="cuda")
    assert made._open().runner.engine.on_gpu
    np.testing.assert_allclose(made.encode_document(TEXTS), expected, atol=1e-4)
    alone = np.concatenate([made.encode_document([text]) for text in TEXTS[:20]])
    np.testing.assert_allclose(alone, expected[:20], atol=1e-4)


def test_auto_takes_cuda_where_it_runs() -> None:
    from tests.exported_models import exported

    assert Embedder.load(exported("bert").folder, device="auto")._open().runner.engine.on_gpu
