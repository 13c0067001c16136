"""The examples that the README shows run as they stand, in a folder that `stm-train demo` would leave."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from stm_retriever import Embedder, Retriever
from tests.contract.fruit_index import make_fruit_index

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def after_the_demo(tmp_path: Path, tiny_onnx_retriever: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    demo = tmp_path / "runs" / "demo"
    shutil.copytree(tiny_onnx_retriever, demo / "retriever")
    make_fruit_index(demo / "index", Embedder.load(demo / "retriever", threads=1))
    monkeypatch.chdir(tmp_path)
    return demo


@pytest.mark.parametrize("name", ["langchain_rag.py", "llama_index_rag.py"])
def test_an_example_prints_the_hits_of_the_index(
    name: str, after_the_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = runpy.run_path(str(EXAMPLES / name))["question"]
    with Retriever.open(after_the_demo / "index", read_only=True) as retriever:
        expected = [f"{hit.score:.3f}  {hit.id}  {hit.text[:60]}" for hit in retriever.search(question, 3)]
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == expected
    assert printed[-1] == "32 dimensions"


@pytest.mark.parametrize("name", ["langchain_rag.py", "llama_index_rag.py"])
def test_an_example_is_short_enough_to_read_at_a_glance(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 16


@pytest.mark.parametrize("name", ["langchain_vector_store.py", "llama_index_vector_store.py"])
def test_an_example_keeps_documents_and_finds_them(
    name: str, after_the_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES / name))
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line[:1].isdigit()]) == 2
    with Retriever.open(after_the_demo / "notes", read_only=True) as retriever:
        assert len(retriever) == 3
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 16
