"""``stm-train search``: modes, filters, thresholds, a reranker, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stm_retriever import Embedder, Retriever
from stm_training.cli import main
from tests.contract.fruit_index import QUESTION, make_fruit_index
from tests.tiny_cross_encoder import make_tiny_cross_encoder


@pytest.fixture
def index(tmp_path: Path, tiny_embedder: Embedder) -> Path:
    return make_fruit_index(tmp_path / "fruit", tiny_embedder)


def search(
    capsys: pytest.CaptureFixture[str], index: Path, query: str, *options: str
) -> list[dict[str, Any]]:
    assert main(["search", str(index), query, "--json", *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_hits_are_those_of_the_retriever(capsys: pytest.CaptureFixture[str], index: Path) -> None:
    with Retriever.open(index, read_only=True) as retriever:
        for mode in ("dense", "lexical", "hybrid"):
            hits = retriever.search(QUESTION, 3, mode=mode)  # type: ignore[arg-type]
            found = search(capsys, index, QUESTION, "--k", "3", "--mode", mode)
            assert [(row["id"], row["score"]) for row in found] == [(hit.id, hit.score) for hit in hits]


def test_a_filter_is_json(capsys: pytest.CaptureFixture[str], index: Path) -> None:
    found = search(capsys, index, QUESTION, "--where", '{"year": {"$gte": 2020}}')
    assert {row["id"] for row in found} == {"apple", "pear"}


@pytest.mark.parametrize(
    ("where", "words"), [("year=3", "no JSON"), ("[1]", "not an object"), ('{"$x": 1}', "x")]
)
def test_what_is_no_filter_is_named(
    capsys: pytest.CaptureFixture[str], index: Path, where: str, words: str
) -> None:
    assert main(["search", str(index), QUESTION, "--where", where]) != 0
    assert words in capsys.readouterr().err


def test_a_least_score_leaves_hits_out(capsys: pytest.CaptureFixture[str], index: Path) -> None:
    best = search(capsys, index, QUESTION)[0]["score"]
    assert len(search(capsys, index, QUESTION, "--min-score", str(best))) == 1
    assert main(["search", str(index), QUESTION, "--min-score", "2"]) == 0
    assert "Nothing fits" in capsys.readouterr().out


def test_a_cross_encoder_folder_reranks(
    capsys: pytest.CaptureFixture[str], index: Path, tmp_path: Path
) -> None:
    reranker = make_tiny_cross_encoder(tmp_path / "reranker")
    found = search(capsys, index, "train", "--rerank", str(reranker), "-k", "1")
    assert found[0]["id"] == "train"
    assert found[0]["score"] == pytest.approx(0.5)


def test_an_empty_index_says_how_to_fill_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_embedder: Embedder
) -> None:
    Retriever.create(tmp_path / "index", embedder=tiny_embedder).close()
    assert main(["search", str(tmp_path / "index"), QUESTION]) == 0
    assert "The index is empty" in capsys.readouterr().out
