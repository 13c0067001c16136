"""Checks of the installation: packages that break each other, execution providers, versions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from stm_training.export.findings import Finding, ok, problem, warning
from stm_training.export.machine import installed_version, versions

# Distributions that unpack into the same import name: the last one installed wins, file by file.
_CPU_AND_GPU = {
    "onnxruntime": (
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
        "the encoder",
    ),
    "faiss": (("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"), "the index"),
}
_GPU_PROVIDER = "CUDAExecutionProvider"


def check_machine(version_of: Callable[[str], str | None] = installed_version) -> list[Finding]:
    """Looks at what is installed.

    Args:
        version_of: Gives the version of a distribution, or None.
    """
    findings = [ok("versions: " + ", ".join(f"{name} {value}" for name, value in versions().items()))]
    for module, (distributions, purpose) in _CPU_AND_GPU.items():
        findings += _check_one_owner(module, distributions, purpose, version_of)
    return findings


def _check_one_owner(
    module: str, distributions: Sequence[str], purpose: str, version_of: Callable[[str], str | None]
) -> list[Finding]:
    there = {name: version for name in distributions if (version := version_of(name)) is not None}
    listed = " and ".join(f"{name} {version}" for name, version in there.items())
    if len(there) > 1:
        remedy = f"pip uninstall -y {' '.join(there)} && pip install --force-reinstall 'stm-retriever[cpu]'"
        return [
            problem(
                f"{listed} are installed together. All own the import name {module!r} and overwrite each "
                "other's files, so it is chance which of them runs, and removing one breaks the other.",
                f"{remedy}   (or [gpu])",
            )
        ]
    if not there:
        return [
            problem(f"{module} is not installed; {purpose} needs it.", "pip install 'stm-retriever[cpu]'")
        ]
    return [
        ok(f"{listed} is the only package that owns {module!r}"),
        *_check_import(module, next(iter(there))),
    ]


def _check_import(module: str, distribution: str) -> list[Finding]:
    reinstall = f"pip install --force-reinstall {distribution}"
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        return [problem(f"{distribution} is installed but cannot be imported: {error}", reinstall)]
    # what is left after one of two owners was uninstalled: a namespace without content
    if not hasattr(loaded, "__version__"):
        return [problem(f"{module} is an empty shell; a package that shared it was uninstalled.", reinstall)]
    return _check_providers(loaded.get_available_providers(), distribution) if module == "onnxruntime" else []


def _check_providers(providers: Sequence[str], distribution: str) -> list[Finding]:
    if distribution == "onnxruntime-gpu" and _GPU_PROVIDER not in providers:
        return [
            warning(
                f"{distribution} is installed but offers only {', '.join(providers)}; "
                "device='cuda' would fail.",
                "pip install --force-reinstall 'stm-retriever[gpu]'",
            )
        ]
    return [ok(f"execution providers: {', '.join(providers)}")]
