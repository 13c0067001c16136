"""Every Python block in the README runs, and the examples are what the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stm_training.cli import COMMANDS, build_parser
from tests.contract.page_blocks import SHELLS, blocks_of
from tests.contract.page_workplace import make_workplace

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALL_BLOCKS = blocks_of(ROOT / "README.md")
BLOCKS = [one.code for one in ALL_BLOCKS if one.language == "python"]
SHELL = [one for one in ALL_BLOCKS if one.language in SHELLS]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two folders that the demo leaves, tiny."""
    return make_workplace(tmp_path_factory.mktemp("readme"))


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
    calls = [arguments for block in SHELL for arguments in block.stm_train]
    assert len(calls) > 4
    for arguments in calls:
        build_parser().parse_args([word for word in arguments if word != "..."])


def test_every_shell_block_of_the_readme_says_why_it_is_not_run() -> None:
    for block in SHELL:
        assert block.reason, f"README.md:{block.line}: put <!-- no-run: reason --> on the line before"


def test_the_readme_s_table_names_every_command() -> None:
    for command in COMMANDS:
        assert f"`stm-train {command}" in README
