"""What ``import stm_retriever`` costs, and that these tests have no network."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import pytest_socket

import stm_retriever

HEAVY = (
    "torch",
    "transformers",
    "faiss",
    "onnxruntime",
    "onnx",
    "huggingface_hub",
    "langchain_core",
    "llama_index.core",
    "stm_training",
)


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _modules_after("import stm_retriever")
    assert "stm_retriever" in loaded
    assert not loaded & {*HEAVY, "numpy", "pydantic", "tokenizers"}


def test_importing_the_classes_loads_no_engine_and_no_framework() -> None:
    loaded = _modules_after("from stm_retriever import Document, Embedder, Hit, Retriever")
    assert "stm_retriever.retriever" in loaded
    assert not loaded & set(HEAVY)


def test_every_public_name_can_be_imported_and_others_are_attribute_errors() -> None:
    for name in stm_retriever.__all__:
        assert getattr(stm_retriever, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Retreiver'"):
        _ = stm_retriever.Retreiver


def test_tests_cannot_reach_the_network() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection,
        pytest.warns(UserWarning, match="192.0.2.1"),
        pytest.raises(pytest_socket.SocketConnectBlockedError),
    ):
        connection.connect(("192.0.2.1", 80))
