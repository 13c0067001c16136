"""Which versions made a figure: stored with every figure, so that a difference can be traced."""

from __future__ import annotations

import platform
from importlib import metadata

from stm_retriever._version import __version__

_DISTRIBUTIONS = (
    "numpy",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "faiss-cpu",
    "faiss-gpu",
    "bm25s",
    "pytrec-eval-terrier",
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "onnx",
    "onnxscript",
    "openai",
)


def installed_versions() -> dict[str, str]:
    """Version of Python, of this package and of what its figures depend on; nothing is imported."""
    found = {"python": platform.python_version(), "stm-retriever": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
