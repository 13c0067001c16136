"""The thin distributions: metadata that brings stm-retriever, and no module."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted((ROOT / "release").glob("*/"))
NAMES = (
    "langchain-stm-retriever",
    "llama-index-embeddings-stm",
    "llama-index-retrievers-stm",
    "llama-index-vector-stores-stm",
)


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_names_that_people_look_for_are_all_there() -> None:
    assert tuple(folder.name for folder in FOLDERS) == NAMES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_names_itself_this_version_and_an_extra_that_there_is(folder: Path) -> None:
    extras = project(ROOT)["project"]["optional-dependencies"]
    metadata = project(folder)["project"]
    assert (metadata["name"], metadata["version"]) == (folder.name, __version__)
    wanted = [
        *metadata["dependencies"],
        *(item for row in metadata["optional-dependencies"].values() for item in row),
    ]
    for requirement in wanted:
        found = re.fullmatch(r"stm-retriever\[([a-z-]+)\]==(.+)", requirement)
        assert found is not None, requirement
        assert found[1] in extras
        assert found[2] == __version__


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_its_readme_imports_can_be_imported(folder: Path) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (imported,) = re.findall(r"^from (\S+) import (.+)$", readme, flags=re.MULTILINE)
    module = importlib.import_module(imported[0])
    for name in imported[1].split(", "):
        assert hasattr(module, name)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_wheel_holds_no_module(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    source = Path(shutil.copytree(folder, tmp_path / folder.name))
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        header = Parser().parsestr(content.read(metadata).decode("utf-8"))
    assert {name.partition("/")[0].endswith(".dist-info") for name in names} == {True}
    assert header["Name"] == folder.name
    assert header["Version"] == __version__
    assert project(folder)["project"]["dependencies"][0] in header.get_all("Requires-Dist", [])
