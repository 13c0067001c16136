"""Shared fixtures: no network, no hub, and tiny real models."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

# Before anything imports the hub's client, which reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Jobs that a shell starts in the background ignore Ctrl-C, and so would the commands that the tests interrupt.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Which snapshots were written here is remembered in the user's state folder; tests leave nothing there.
_STATE = tempfile.TemporaryDirectory(prefix="stm-tests-")
os.environ["XDG_STATE_HOME"] = _STATE.name

import pytest  # noqa: E402
import pytest_socket  # noqa: E402

from stm_retriever import Embedder, Retriever  # noqa: E402
from tests.tiny_retriever import make_tiny_retriever  # noqa: E402


@pytest.fixture(autouse=True)
def only_loopback() -> None:
    """A test that reaches for the network fails; pytest-socket takes the ban back after each test."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one core: tiny products wait for each other otherwise, and sums repeat bit for bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_onnx_retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever folder with two different, non-empty prompts. Shared: do not write into it."""
    return make_tiny_retriever(tmp_path_factory.mktemp("models") / "tiny", name="tiny")


@pytest.fixture(scope="session")
def tiny_embedder(tiny_onnx_retriever: Path) -> Embedder:
    """The same folder, loaded."""
    return Embedder.load(tiny_onnx_retriever, threads=1)


@pytest.fixture
def empty_retriever(tmp_path: Path, tiny_embedder: Embedder) -> Iterator[Retriever]:
    """A new index without documents, closed at the end."""
    with Retriever.create(tmp_path / "index", embedder=tiny_embedder) as retriever:
        yield retriever
