"""ONNX Runtime sessions: the device that was asked for, the threads that this process may use."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stm_retriever.errors import ConfigError, ModelFolderError, ProviderError, require

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Device = Literal["cpu", "cuda", "auto"]

_PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CGROUP = Path("/sys/fs/cgroup")


def open_session(
    onnx_path: Path,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    allow_fallback: bool = False,
) -> InferenceSession:
    """Open an ONNX file on the device that was asked for.

    Args:
        onnx_path: The file; its weight files lie beside it.
        device: ``"auto"`` takes CUDA where it really runs, else the CPU.
        threads: CPU threads of one run; None takes :func:`usable_cpus`.
        allow_fallback: Take the CPU when CUDA was asked for and is not there.

    Raises:
        ConfigError: If device or threads have an impossible value.
        ProviderError: If the session does not run on the device that was asked for.
        ModelFolderError: If the file is missing or ONNX Runtime cannot load it.
        MissingExtraError: If ONNX Runtime is not installed.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"device={device!r} is not known. Pass 'cpu', 'cuda' or 'auto'.")
    check_threads(threads)
    check_onnx_file(onnx_path)
    runtime = require("onnxruntime", extra="cpu", purpose="the encoder")
    options = _options(runtime, threads or usable_cpus())
    may_use_cpu = allow_fallback or device == "auto"
    if device != "cpu":
        session = _cuda_session(runtime, onnx_path, options, may_use_cpu)
        if session is not None:
            return session
    session = _create(runtime, onnx_path, options, [_PROVIDER["cpu"]])
    _check_provider(session, "cpu")
    return session


def check_threads(threads: int | None) -> None:
    """Raise :class:`ConfigError` for a number of threads that no run can have."""
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: a run needs at least one. Pass 1 or more, or None for all.")


def check_onnx_file(onnx_path: Path) -> None:
    """Raise :class:`ModelFolderError` if there is no such file."""
    if not Path(onnx_path).is_file():
        raise ModelFolderError(
            f"No ONNX file {str(onnx_path)!r}, so nothing can be encoded. Copy the model folder again, "
            "whole, or make it anew: stm-train export MODEL --out FOLDER"
        )


def usable_cpus() -> int:
    """Count the CPUs that this process may really use: affinity, container quota, OMP_NUM_THREADS.

    ONNX Runtime by itself starts a thread for each core of the machine, which in a container with a quota of
    two makes every call slower.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    limits = [allowed, *_cgroup_quotas()]
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdecimal() and int(wish) > 0:
        limits.append(int(wish))
    return max(1, min(limits))


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Every text length is another shape; remembering a memory plan for each only grows the process.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options


def _cuda_session(runtime: Any, onnx_path: Path, options: Any, may_use_cpu: bool) -> InferenceSession | None:
    """A session on CUDA; None if it cannot be had and the CPU is allowed."""
    available = runtime.get_available_providers()
    if _PROVIDER["cuda"] not in available:
        if may_use_cpu:
            return None
        raise ProviderError(
            f"device='cuda' was asked for, but onnxruntime {runtime.__version__} offers only "
            f"{', '.join(available)}.{_both_wheels()} Run: pip uninstall -y onnxruntime && "
            "pip install --force-reinstall 'stm-retriever[gpu]' - or pass device='cpu', or "
            "allow_fallback=True."
        )
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # finds the CUDA libraries that pip installed beside it
    # TensorFloat-32, on by default, keeps 10 bits of a factor; for speed there is the fp16 variant.
    cuda = (_PROVIDER["cuda"], {"use_tf32": "0"})
    session = _create(runtime, onnx_path, options, [cuda, _PROVIDER["cpu"]])
    if may_use_cpu and _PROVIDER["cuda"] not in session.get_providers():
        return None
    _check_provider(session, "cuda")
    return session


def _create(runtime: Any, onnx_path: Path, options: Any, providers: list[Any]) -> InferenceSession:
    try:
        session: InferenceSession = runtime.InferenceSession(
            str(onnx_path), sess_options=options, providers=providers
        )
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise ModelFolderError(
            f"onnxruntime {runtime.__version__} cannot load {str(onnx_path)!r}: {error}. The file is damaged "
            "or made for another version. Copy the model folder again, or make it anew: "
            "stm-train export MODEL --out FOLDER"
        ) from error
    return session


def _check_provider(session: InferenceSession, device: str) -> None:
    runs_on = session.get_providers()
    if _PROVIDER[device] not in runs_on:
        raise ProviderError(
            f"device={device!r} was asked for, but the session runs on {', '.join(runs_on)}: the driver or a "
            f"CUDA library did not load.{_both_wheels()} Look at the CUDA and cuDNN versions that this "
            "onnxruntime wants, or pass device='cpu', or allow_fallback=True."
        )


def _both_wheels() -> str:
    """The most frequent cause: both wheels own the same files, and the later one won."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f" Both {' and '.join(found)} are installed and overwrite each other." if len(found) == 2 else ""


def _cgroup_quotas() -> Iterator[int]:
    """CPU quotas of this process's control groups, innermost to outermost, rounded up."""
    for folder in _cgroup_folders():
        try:
            quota, _, period = (folder / "cpu.max").read_text("ascii").partition(" ")
            if quota != "max":
                yield math.ceil(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    try:  # version 1
        quota_us = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text("ascii"))
        period_us = int((_CGROUP / "cpu/cpu.cfs_period_us").read_text("ascii"))
        if quota_us > 0 and period_us > 0:
            yield math.ceil(quota_us / period_us)
    except (OSError, ValueError):
        return


def _cgroup_folders() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    inner = _CGROUP / own
    return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(_CGROUP)]
