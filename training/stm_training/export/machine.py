"""What ran an export: library versions and the CPU's instruction sets."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from stm_retriever._version import __version__

# Those that change which kernels, and so which roundings, an engine picks.
_CPU_FLAGS = frozenset(
    "fma f16c avx avx2 avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimddp asimdhp i8mm bf16 sve sve2".split()
)
_LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy", "peft")


def installed_version(distribution: str) -> str | None:
    """Returns the version of an installed distribution, or None, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Returns the versions that took part in an export; libraries that are absent are left out."""
    found = {"stm-retriever": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        version = installed_version(name)
        if version is not None:
            found[name] = version
    return found


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Returns the architecture and the instruction sets that matter, sorted.

    Args:
        cpuinfo: The kernel's list; where there is none (macOS, Windows) only the architecture is known.
    """
    features = {platform.machine().lower() or "unknown"}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return sorted(features)
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            features |= _CPU_FLAGS.intersection(value.split())
            break
    return sorted(features)
