"""Tuning: the least effort that reaches a recall on the user's own vectors, or a plain no."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stm_retriever import ConfigError, DataError
from stm_retriever.index.kinds import Labels, Vectors, load_index, new_index, tune
from stm_retriever.index.kinds.approximate import ApproximateIndex

DIMENSION = 64
COUNT = 3000


def _unit(array: np.ndarray) -> Vectors:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


RNG = np.random.default_rng(0)
VECTORS = _unit(RNG.standard_normal((COUNT, DIMENSION)))  # without clusters: hard for every kind
QUERIES = _unit(RNG.standard_normal((60, DIMENSION)))
LABELS = np.arange(COUNT, dtype=np.int64) + 5
TRUTH = [LABELS[np.argsort(-row)[:10]] for row in QUERIES @ VECTORS.T]


@cache
def _saved(kind: str) -> bytes:
    index = new_index(kind, DIMENSION, expected=COUNT, sample=lambda count: VECTORS[:count])
    index.add(LABELS, VECTORS)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index.faiss")
        return (Path(folder) / "index.faiss").read_bytes()


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], ApproximateIndex]:
    """Gives an index of a kind with its default parameters."""

    def make(kind: str) -> ApproximateIndex:
        (tmp_path / "index.faiss").write_bytes(_saved(kind))
        index = load_index(kind, DIMENSION, tmp_path / "index.faiss", mmap=False)
        assert isinstance(index, ApproximateIndex)
        return index

    return make


Make = Callable[[str], ApproximateIndex]


def _recall(index: ApproximateIndex) -> float:
    found = index.search(QUERIES, 10 * index.candidates_factor)
    return float(
        np.mean([len(np.intersect1d(one, true)) / 10 for one, true in zip(found, TRUTH, strict=True)])
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("hnsw", {"efSearch"}),
        ("ivf", {"nprobe"}),
        ("ivf-pq", {"nprobe", "candidates_factor"}),
        ("rabitq", {"nprobe", "candidates_factor"}),
        ("sq8", {"candidates_factor"}),
    ],
)
def test_the_recall_that_is_reported_is_reached_with_the_parameters_that_are_set(
    made: Make, kind: str, names: set[str]
) -> None:
    index = made(kind)
    tuned = tune(index, QUERIES, TRUTH, recall=0.8, k=10)
    assert tuned.reached
    assert tuned.recall >= 0.8
    assert set(tuned.parameters) == names
    assert index.parameters.items() >= tuned.parameters.items()
    assert _recall(index) == pytest.approx(tuned.recall)
    assert tuned.p50_ms > 0
    assert f"recall@10 is {tuned.recall:.3f} on 60 queries" in tuned.message


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_more_recall_takes_more_effort_and_the_least_that_reaches_it_is_taken(made: Make, kind: str) -> None:
    index = made(kind)
    efforts = []
    for wanted in (0.5, 0.8, 0.99):
        tuned = tune(index, QUERIES, TRUTH, recall=wanted, k=10)
        assert tuned.reached
        efforts.append(next(iter(tuned.parameters.values())))
    assert efforts == sorted(efforts)
    assert efforts[0] < efforts[-1]
    if kind == "ivf":
        index.set_parameters({"nprobe": efforts[1] - max(1, efforts[1] // 4)})
        assert _recall(index) < 0.8


def test_a_recall_that_cannot_be_reached_is_said_and_the_best_is_set(made: Make) -> None:
    index = made("binary")  # 64 bits of noise: hundreds of candidates do not hold all ten
    tuned = tune(index, QUERIES, TRUTH, recall=1.0, k=10)
    assert not tuned.reached
    assert tuned.recall < 1
    assert "1 is not reached even with the widest search" in tuned.message
    assert tuned.parameters["candidates_factor"] == index.candidates_factor == 32
    assert _recall(index) == pytest.approx(tuned.recall)


def test_a_flat_index_needs_no_tuning() -> None:
    index = new_index("flat", DIMENSION)
    index.add(LABELS, VECTORS)
    tuned = tune(index, QUERIES, TRUTH, recall=1.0, k=10)
    assert (tuned.reached, tuned.recall, tuned.parameters) == (True, 1.0, {})
    assert "compares every vector" in tuned.message


def test_recall_counts_what_is_there_where_there_are_fewer_than_k() -> None:
    index = new_index("hnsw", DIMENSION)
    index.add(LABELS[:4], VECTORS[:4])
    truth = [LABELS[:4] for _ in QUERIES]
    assert tune(index, QUERIES, truth, recall=1.0, k=10).recall == 1.0


@pytest.mark.parametrize("recall", [0.0, -1.0, 1.01, float("nan")])
def test_a_recall_out_of_range_is_an_error(made: Make, recall: float) -> None:
    with pytest.raises(ConfigError, match="recall="):
        tune(made("sq8"), QUERIES, TRUTH, recall=recall, k=10)


def test_queries_and_their_nearest_must_fit_together(made: Make) -> None:
    index = made("hnsw")
    none: list[Labels] = []
    with pytest.raises(DataError, match="without queries"):
        tune(index, QUERIES[:0], none, recall=0.9, k=10)
    with pytest.raises(DataError, match="60 queries and 2 lists"):
        tune(index, QUERIES, TRUTH[:2], recall=0.9, k=10)
    with pytest.raises(ConfigError, match="k=0"):
        tune(index, QUERIES, TRUTH, recall=0.9, k=0)
