"""Batches on an engine: side by side, out of memory, errors, and what a batch mate may change."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import ConfigError, Embedder, ProviderError
from stm_retriever.encoding.engines import is_out_of_memory, parallel_runs
from stm_retriever.encoding.runner import Runner

TEXTS = [f"{first} {second} {third}" for first in ("red", "sea") for second in ("apple", "cat") for third in
         ("fever", "rain", "book", "ten")]  # fmt: skip


class LittleMemory:
    """A stand-in for a device whose memory holds so many tokens at a time; a text's vector is its ids' sum."""

    on_gpu = True
    parallel = 1

    def __init__(self, tokens: int, message: str) -> None:
        self.tokens, self.message = tokens, message
        self.sizes: list[int] = []

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, *, beside_others: bool) -> np.ndarray:
        self.sizes.append(input_ids.size)
        if input_ids.size > self.tokens:
            raise RuntimeError(self.message)
        total = (input_ids * attention_mask).sum(axis=1)
        return np.stack([total, np.ones_like(total)], axis=1).astype(np.float32)


def runner(engine: object, embedder: Embedder, variant: str = "fp32") -> Runner:
    return Runner(engine, embedder.tokenizer, variant=variant, dimension=2, folder=Path("model"))


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 8589934592",
        "CUDA failure 2: out of memory ; GPU=0",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
    ],
)
def test_out_of_memory_halves_the_budget_and_every_text_still_gets_its_vector(
    tiny_embedder: Embedder, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = tiny_embedder.tokenizer.encode(TEXTS, "document")
    expected = runner(LittleMemory(10**9, message), tiny_embedder).encode(ids)
    engine = LittleMemory(40, message)
    made = runner(engine, tiny_embedder)
    with caplog.at_level(logging.WARNING, logger="stm_retriever"):
        np.testing.assert_array_equal(made.encode(ids), expected)
    assert 8 <= made.budget <= 40 + max(map(len, ids))
    assert "did not fit into memory; batches have at most" in caplog.text
    failures = sum(size > 40 for size in engine.sizes)
    made.encode(ids)
    assert sum(size > 40 for size in engine.sizes) == failures, "the smaller budget was forgotten"


def test_a_single_text_that_does_not_fit_is_a_typed_error(tiny_embedder: Embedder) -> None:
    made = runner(LittleMemory(3, "out of memory"), tiny_embedder)
    with pytest.raises(ProviderError, match="One text of 5 tokens alone does not fit"):
        made.encode([np.arange(5)])


def test_other_errors_of_an_engine_are_not_taken_for_lack_of_memory(tiny_embedder: Embedder) -> None:
    engine = LittleMemory(3, "INVALID_ARGUMENT : input_ids")
    with pytest.raises(RuntimeError, match="INVALID_ARGUMENT"):
        runner(engine, tiny_embedder).encode([np.arange(5), np.arange(5)])
    assert len(engine.sizes) == 1
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(KeyboardInterrupt("out of memory"))


class Beside(LittleMemory):
    """Notes from which threads it runs, and fails at one text."""

    on_gpu = False
    parallel = 3

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(10**9, "")
        self.fails_at = fails_at
        self.threads: set[int] = set()
        self.rows: list[int] = []

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, *, beside_others: bool) -> np.ndarray:
        assert beside_others
        self.threads.add(threading.get_ident())
        self.rows.append(len(input_ids))
        if self.fails_at is not None:
            if (input_ids == self.fails_at).any():
                raise RuntimeError("the engine failed")
            time.sleep(0.01)  # or a busy machine might run them all before the error is looked at
        return super().run(input_ids, attention_mask, beside_others=beside_others)


def test_batches_run_side_by_side_and_come_back_in_order(tiny_embedder: Embedder) -> None:
    ids = [np.full(length, 7) for length in (50, 3, 60, 9, 40, 3, 64, 33, 20, 5)] * 20
    engine = Beside()
    found = runner(engine, tiny_embedder).encode(ids)
    expected = runner(LittleMemory(10**9, ""), tiny_embedder).encode(ids)
    np.testing.assert_array_equal(found, expected)
    assert threading.get_ident() not in engine.threads
    engine = Beside()
    runner(engine, tiny_embedder, "int8").encode(ids)
    assert engine.rows == [1] * len(ids)


def test_an_error_beside_others_is_raised_and_what_waits_is_not_begun(tiny_embedder: Embedder) -> None:
    engine = Beside(fails_at=9)
    ids = [np.array([9] * 60), *(np.full(30, 7) for _ in range(5000))]
    with pytest.raises(RuntimeError, match="the engine failed"):
        runner(engine, tiny_embedder).encode(ids)
    assert sum(engine.rows) < len(ids)


def test_large_models_and_gpus_run_one_batch_at_a_time() -> None:
    assert parallel_runs(4, 90 * 2**20, on_gpu=False) == 4
    assert parallel_runs(4, 2**30, on_gpu=False) == 1
    assert parallel_runs(4, 90 * 2**20, on_gpu=True) == 1


def test_the_number_of_threads_never_changes_a_vector(tiny_onnx_retriever: Path) -> None:
    one = Embedder.load(tiny_onnx_retriever, threads=1).encode_document(TEXTS * 3)
    for threads in (2, 3):
        made = Embedder.load(tiny_onnx_retriever, threads=threads)
        np.testing.assert_allclose(made.encode_document(TEXTS * 3), one, atol=1e-6)
        np.testing.assert_allclose(made.with_threads(1).encode_document(TEXTS * 3), one, atol=1e-6)


def test_an_unknown_engine_is_an_error_that_lists_those_there_are(tiny_onnx_retriever: Path) -> None:
    with pytest.raises(ConfigError, match="onnxruntime, openvino, openvino-bf16"):
        Embedder.load(tiny_onnx_retriever, engine="tensorrt")
