"""The copy of an index on a card: dispatch with a stand-in for FAISS's GPU functions, and the real thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from stm_retriever import ConfigError, ProviderError
from stm_retriever.index.kinds import load_index, new_index
from stm_retriever.index.kinds.gpu import to_gpu

DIMENSION = 16
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((1500, DIMENSION), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
LABELS = np.arange(1500, dtype=np.int64) + 7


def _filled(kind: str) -> Any:
    index = new_index(kind, DIMENSION, expected=1500, sample=lambda count: VECTORS[:count])
    index.add(LABELS, VECTORS)
    return index


class StandIn:
    """FAISS's GPU functions, as if there were cards: the copies are on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cards: int, refuses: bool = False) -> None:
        self.copies: list[str] = []
        self.refuses = refuses
        options = type("GpuMultipleClonerOptions", (), {"shard": False})
        for name, value in {
            "StandardGpuResources": object,
            "GpuMultipleClonerOptions": options,
            "get_num_gpus": lambda: cards,
            "index_cpu_to_gpu": self._one,
            "index_cpu_to_gpu_multiple_py": self._many,
        }.items():
            monkeypatch.setattr(faiss, name, value, raising=False)
        monkeypatch.delattr(faiss, "GpuIndexCagra", raising=False)

    def _one(self, resources: object, device: int, index: Any) -> Any:
        if self.refuses:
            raise RuntimeError("Error: 'false' failed:\nthis index type is not implemented on the GPU")
        self.copies.append(f"{type(index).__name__} on {device}")
        return faiss.clone_index(index)

    def _many(self, resources: list[object], index: Any, options: Any, devices: list[int]) -> Any:
        self.copies.append(
            f"{type(index).__name__} on {devices}, {'shard' if options.shard else 'replicate'}"
        )
        return faiss.clone_index(index)


def test_without_gpu_support_the_error_names_the_wheels_and_the_cuda_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(
        ProviderError, match=r"no GPU support.*faiss-gpu .*faiss-gpu-cu12.*faiss-gpu-cuvs.*CUDA seen: .*cpu"
    ):
        to_gpu(_filled("flat"))


def test_a_card_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch, cards=1)
    with pytest.raises(ProviderError, match="sees 1 GPUs, and there is no GPU 1, 3"):
        to_gpu(_filled("flat"), [0, 1, 3])
    with pytest.raises(ConfigError, match="names no card"):
        to_gpu(_filled("flat"), [])
    with pytest.raises(ConfigError, match="mode='both'"):
        to_gpu(_filled("flat"), mode="both")  # type: ignore[arg-type]
    StandIn(monkeypatch, cards=0)
    with pytest.raises(ProviderError, match="sees 0 GPUs"):
        to_gpu(_filled("flat"))


@pytest.mark.parametrize(
    ("kind", "cards", "mode", "expected"),
    [
        ("flat", 1, "replicate", "IndexFlatIP on 0"),
        ("hnsw", 1, "replicate", "IndexFlat on 0"),
        ("ivf", 2, "replicate", "IndexIVFFlat on [0, 1], replicate"),
        ("flat", 2, "shard", "IndexFlatIP on [0, 1], shard"),
    ],
)
def test_a_copy_is_made_for_the_cards_as_asked(
    monkeypatch: pytest.MonkeyPatch, kind: str, cards: int, mode: Any, expected: str
) -> None:
    stand_in = StandIn(monkeypatch, cards=cards)
    to_gpu(_filled(kind), mode=mode)
    assert stand_in.copies == [expected]


def test_a_kind_that_no_card_knows_is_an_error_that_says_which_do(monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch, cards=1, refuses=True)
    with pytest.raises(ProviderError, match=r"IndexLSH.*not implemented on the GPU.*flat, hnsw or ivf"):
        to_gpu(_filled("binary"))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_changes_go_to_the_cpu_index_and_the_copy_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    StandIn(monkeypatch, cards=1)
    _check_changes(to_gpu(_filled(kind)), kind, tmp_path)


def _check_changes(index: Any, kind: str, tmp_path: Path) -> None:
    for query in (3, 700):
        assert index.search(VECTORS[query : query + 1], 5)[0][0] == LABELS[query]
    index.remove(LABELS[3:10])
    assert len(index) == 1493
    assert not np.isin(index.search(VECTORS[3:10], 20), LABELS[3:10]).any()
    assert [len(row) for row in index.search(VECTORS[3:5], 20)] == [20, 20]
    index.add(np.array([9000]), VECTORS[3:4])
    assert index.search(VECTORS[3:4], 1)[0].tolist() == [9000]
    assert index.search(VECTORS[3:4], 5, allowed=np.array([10, 700]))[0].tolist() == [700]
    index.save(tmp_path / "index.faiss")
    again = load_index(kind, DIMENSION, tmp_path / "index.faiss")
    assert len(again) == 1494
    assert again.search(VECTORS[3:4], 1)[0].tolist() == [9000]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_real_card_finds_what_the_cpu_finds(tmp_path: Path, kind: str) -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has no GPU support")
    if not faiss.get_num_gpus():
        pytest.skip("FAISS sees no GPU")
    plain, index = _filled(kind), to_gpu(_filled(kind))
    pairs = zip(index.search(VECTORS[:50], 10), plain.search(VECTORS[:50], 10), strict=True)
    assert np.mean([len(np.intersect1d(one, other)) / 10 for one, other in pairs]) >= 0.95
    _check_changes(index, kind, tmp_path)
