"""ONNX Runtime sessions: the device that was asked for, threads, files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stm_retriever import ConfigError, MissingExtraError, ModelFolderError, ProviderError, onnx_session
from stm_retriever.onnx_session import open_session, usable_cpus


@pytest.fixture
def onnx_file(tiny_onnx_retriever: Path) -> Path:
    return tiny_onnx_retriever / "onnx/model.onnx"


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("no_cuda")
def test_a_device_that_is_not_there_is_an_error(onnx_file: Path) -> None:
    with pytest.raises(
        ProviderError, match=r"device='cuda'.*offers only CPUExecutionProvider.*stm-retriever\[gpu\]"
    ):
        open_session(onnx_file, device="cuda")


@pytest.mark.usefixtures("no_cuda")
def test_the_cpu_is_taken_where_the_caller_allowed_it(onnx_file: Path) -> None:
    for session in (
        open_session(onnx_file, device="cuda", allow_fallback=True),
        open_session(onnx_file, device="auto"),
    ):
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_provider_that_silently_did_not_load_is_an_error(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    # What a GPU wheel does without its CUDA libraries: it offers CUDA, and the session runs on the CPU.
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, sess_options, providers: real(path, sess_options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderError, match="the session runs on CPUExecutionProvider"):
        open_session(onnx_file, device="cuda")
    assert open_session(onnx_file, device="auto").get_providers() == ["CPUExecutionProvider"]


def test_values_that_cannot_be_are_errors(onnx_file: Path) -> None:
    with pytest.raises(ConfigError, match="device='tpu'"):
        open_session(onnx_file, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads=0"):
        open_session(onnx_file, threads=0)


def test_a_missing_or_damaged_file_is_a_typed_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(ModelFolderError, match=r"No ONNX file.*stm-train export"):
        open_session(file)
    file.write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match=r"cannot load.*model\.onnx"):
        open_session(file)


def test_a_missing_runtime_names_the_extra(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stm-retriever\[cpu\]'"):
        open_session(onnx_file)


def test_threads_are_limited_by_affinity_quota_and_omp_num_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(onnx_session, "_CGROUP", tmp_path)
    monkeypatch.setattr(onnx_session, "_cgroup_folders", lambda: [tmp_path])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usable_cpus() == 64
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cpus() == 64
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cpus() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert usable_cpus() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert usable_cpus() == 3


def test_the_threads_that_were_asked_for_are_those_of_the_session(onnx_file: Path) -> None:
    assert open_session(onnx_file, threads=1).get_session_options().intra_op_num_threads == 1
