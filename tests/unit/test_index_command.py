"""``stm-train index --kind``: which kind of vector index is made, and what is no kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stm_retriever import Retriever
from stm_retriever.index.kinds import KINDS
from stm_retriever.index.manifest import read_index_manifest
from stm_training.cli import main
from tests.tiny_retriever import make_tiny_retriever


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_retriever(tmp_path / "model")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    rows = [{"_id": "a", "text": "red apple"}, {"_id": "b", "text": "the sea"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _index(documents: Path, model: Path, out: Path, *options: str) -> int:
    return main(["index", str(documents), "--model", str(model), "--out", str(out), *options])


@pytest.mark.parametrize("kind", [None, *KINDS, "auto", "factory:HNSW16,SQ8"])
def test_the_index_is_of_the_kind_that_was_asked_for(
    documents: Path, model: Path, tmp_path: Path, kind: str | None
) -> None:
    assert _index(documents, model, tmp_path / "out", *([] if kind is None else ["--kind", kind])) == 0
    assert read_index_manifest(tmp_path / "out").kind == (kind or "flat")
    with Retriever.open(tmp_path / "out", read_only=True) as retriever:
        assert retriever.search("red apple", k=1)[0].id == "a"


def test_what_is_no_kind_is_named_before_anything_is_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _index(tmp_path / "nowhere", model, tmp_path / "out", "--kind", "tree") != 0
    assert "kind='tree' is no kind of index" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_index_that_is_there_keeps_its_kind_and_another_one_is_an_error(
    documents: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _index(documents, model, tmp_path / "out", "--kind", "hnsw") == 0
    assert _index(documents, model, tmp_path / "out") == 0
    assert read_index_manifest(tmp_path / "out").kind == "hnsw"
    assert _index(documents, model, tmp_path / "out", "--kind", "flat") != 0
    assert "of kind 'hnsw', not 'flat'" in capsys.readouterr().err


def test_the_help_says_what_auto_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "auto chooses by size" in words
    assert all(kind in words for kind in KINDS)
