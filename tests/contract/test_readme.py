"""Every Python block in the README runs, and the examples are what the README shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stm_retriever import Document, Embedder, Retriever
from stm_training.cli import COMMANDS, build_parser
from tests.tiny_retriever import make_tiny_retriever

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two folders that the demo leaves, tiny."""
    folder = tmp_path_factory.mktemp("readme")
    make_tiny_retriever(folder / "runs" / "demo" / "retriever")
    embedder = Embedder.load(folder / "runs" / "demo" / "retriever")
    with Retriever.create(folder / "runs" / "demo" / "index", embedder=embedder) as retriever:
        retriever.add(Document(id=f"d{n}", text=f"Text number {n} about asthma.") for n in range(5))
    return folder


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_python_block_of_the_readme_runs(workplace: Path, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[number]], capture_output=True, text=True, check=False, cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", ["langchain_rag.py", "llama_index_rag.py"])
def test_the_readme_shows_the_examples_as_they_are(name: str) -> None:
    code = (ROOT / "examples" / name).read_text(encoding="utf-8").split('"""', 2)[2].strip()
    assert code in [block.strip() for block in BLOCKS]


def test_the_readme_has_both_framework_examples() -> None:
    assert sum("langchain_stm" in block for block in BLOCKS) == 1
    assert sum("llama_index.embeddings.stm" in block for block in BLOCKS) == 1


def test_every_stm_train_line_of_the_readme_is_accepted_by_the_parser() -> None:
    lines = [line.split("#")[0].strip() for block in SHELL for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("stm-train ")]
    assert commands
    for line in commands:
        words = re.findall(r'"[^"]*"|\S+', line)[1:]
        build_parser().parse_args([word.strip('"') for word in words])


def test_the_readme_s_table_names_every_command() -> None:
    for command in COMMANDS:
        assert f"`stm-train {command}" in README
