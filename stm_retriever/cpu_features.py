"""The CPU's instruction sets that change which kernels, and so which roundings, an engine picks."""

from __future__ import annotations

import platform
from pathlib import Path

_FLAGS = frozenset(
    "fma f16c avx avx2 avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimddp asimdhp i8mm bf16 sve sve2".split()
)


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
            features |= _FLAGS.intersection(value.split())
            break
    return sorted(features)
