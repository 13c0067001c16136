"""Who may import whom: the rooms of the project keep their doors shut (CONTRIBUTING.md, "Layout")."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "faiss",
    "onnxruntime",
    "langchain_core",
    "llama_index",
    "stm_training",
)

ROOMS = {
    "stm_retriever": (
        "stm_training",
        "langchain_stm",
        "llama_index",
        "langchain_core",
        "torch",
        "transformers",
        "peft",
    ),
    "training": ("langchain_stm", "llama_index", "langchain_core"),
    "integrations/langchain_stm": ("stm_training", "llama_index", "torch", "transformers"),
    "integrations/llama_index": ("stm_training", "langchain_stm", "langchain_core", "torch", "transformers"),
}


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"no source found in {room}"
    offenders = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for line, module in imported_modules(path)
        if module.partition(".")[0] in ROOMS[room]
    ]
    assert offenders == []


def modules_loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print('\\n'.join(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(output.stdout.split())


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    assert modules_loaded_by("import stm_retriever").isdisjoint(HEAVY)


def test_the_help_of_the_command_loads_nothing_heavy() -> None:
    loaded = modules_loaded_by("from stm_training.cli import build_parser; build_parser().format_help()")
    assert loaded.isdisjoint(set(HEAVY) - {"stm_training"})


def test_the_llama_index_folders_stay_namespace_packages() -> None:
    namespace = ROOT / "integrations" / "llama_index"
    assert not (namespace / "__init__.py").exists()
    assert not any((folder / "__init__.py").exists() for folder in namespace.iterdir() if folder.is_dir())
