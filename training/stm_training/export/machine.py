"""What ran an export: library versions."""

from __future__ import annotations

import platform
from importlib import metadata

from stm_retriever._version import __version__

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
