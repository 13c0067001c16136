"""Rerankers: what a function may return, and cross-encoders from ONNX folders."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import ConfigError, DataError, ModelFolderError
from stm_retriever.rerank import CrossEncoder, rerank_scores
from tests.tiny_cross_encoder import make_tiny_cross_encoder

QUERY = "red apple"
TEXTS = ["a green pear", "the red apple is red", "red snow", "apple " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cross_encoder(tmp_path_factory.mktemp("rerankers") / "tiny")


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_scores_are_the_graphs_for_each_pair(folder: Path) -> None:
    scores = CrossEncoder.load(folder, threads=1)(QUERY, TEXTS[:3])
    assert scores == pytest.approx([sigmoid(-1), sigmoid(2), sigmoid(0)])


def test_the_bare_logit_can_be_had(folder: Path) -> None:
    scores = CrossEncoder.load(folder, threads=1, activation="identity")(QUERY, TEXTS[:3])
    assert scores == pytest.approx([-1.0, 2.0, 0.0])


def test_two_outputs_give_the_probability_of_the_second(tmp_path: Path) -> None:
    reranker = CrossEncoder.load(make_tiny_cross_encoder(tmp_path / "two", outputs=2), threads=1)
    assert reranker(QUERY, TEXTS[:3]) == pytest.approx([sigmoid(-1), sigmoid(2), sigmoid(0)])


def test_batch_mates_and_their_order_change_nothing(folder: Path) -> None:
    reranker = CrossEncoder.load(folder, threads=1)
    together = reranker(QUERY, TEXTS * 30)
    alone = np.concatenate([reranker(QUERY, [text]) for text in TEXTS])
    assert together == pytest.approx(np.tile(alone, 30))


def test_a_pair_is_cut_to_what_the_model_reads(folder: Path) -> None:
    reranker = CrossEncoder.load(folder, threads=1, activation="identity", max_length=16)
    # 16 places less [CLS], two </s>, and the two words of the query, each there 11 times at most.
    assert reranker(QUERY, [TEXTS[3]]) == pytest.approx([10.0])
    assert CrossEncoder.load(folder, threads=1).max_length == 64


def test_the_graph_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    reranker = CrossEncoder.load(make_tiny_cross_encoder(tmp_path / "flat", root=True), threads=1)
    assert reranker(QUERY, ["red"]) == pytest.approx([0.5])


def test_no_texts_give_no_scores(folder: Path) -> None:
    assert CrossEncoder.load(folder, threads=1)(QUERY, []).shape == (0,)


def test_a_bare_string_for_a_list_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="list of texts"):
        CrossEncoder.load(folder, threads=1)(QUERY, "apple")


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "onnx/model.onnx"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = make_tiny_cross_encoder(tmp_path / "part")
    (folder / missing).unlink()
    with pytest.raises(ModelFolderError, match=missing.rpartition("/")[2].replace(".", r"\.")):
        CrossEncoder.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "onnx/model.onnx"])
def test_a_broken_file_is_a_typed_error(tmp_path: Path, name: str) -> None:
    folder = make_tiny_cross_encoder(tmp_path / "broken")
    (folder / name).write_text("{ this is", encoding="utf-8")
    with pytest.raises(ModelFolderError):
        CrossEncoder.load(folder)


def test_more_classes_than_two_are_an_error(tmp_path: Path) -> None:
    reranker = CrossEncoder.load(make_tiny_cross_encoder(tmp_path / "nli", outputs=3), threads=1)
    with pytest.raises(ModelFolderError, match="3 numbers per pair"):
        reranker(QUERY, TEXTS)


def test_a_graph_outside_the_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    other = make_tiny_cross_encoder(tmp_path / "other")
    (other / "onnx" / "model.onnx").rename(tmp_path / "outside.onnx")
    with pytest.raises(ModelFolderError, match="neither"):
        CrossEncoder.load(other, file="../outside.onnx")


def test_the_length_is_the_least_that_is_named(tmp_path: Path) -> None:
    folder = make_tiny_cross_encoder(tmp_path / "long", max_length=100_000)
    assert CrossEncoder.load(folder).max_length == 512
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 20}), encoding="utf-8")
    assert CrossEncoder.load(folder).max_length == 20


def test_loading_one_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from stm_retriever.rerank import CrossEncoder; "
        f"CrossEncoder.load({str(folder)!r}, threads=1)('red', ['red']); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([1.0], ConfigError, "shape"),
        ([[1.0], [2.0]], ConfigError, "shape"),
        (["good", "bad"], ConfigError, "no numbers"),
        (None, ConfigError, "shape"),
        ([1.0, float("nan")], DataError, "nan"),
    ],
)
def test_what_is_no_score_per_text_is_an_error(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rerank_scores(lambda query, texts: given, "q", ["one", "two"])


def test_what_cannot_be_called_is_no_reranker() -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        rerank_scores("bge-reranker", "q", ["one"])  # type: ignore[arg-type]
