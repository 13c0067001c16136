"""Without its framework, an integration says which extra to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from stm_retriever import MissingExtraError


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain_stm", "langchain_core", "langchain"),
        ("llama_index.embeddings.stm", "llama_index.core", "llama-index"),
        ("llama_index.retrievers.stm", "llama_index.core", "llama-index"),
        ("llama_index.vector_stores.stm", "llama_index.core", "llama-index"),
    ],
)
def test_the_extra_is_named(module: str, framework: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'stm-retriever\[{extra}\]'"):
        importlib.import_module(module)
