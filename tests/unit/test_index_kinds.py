"""Every kind of vector index behind one interface: labels, deletes, filters, files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest

from stm_retriever import ConfigError
from stm_retriever.index.kinds import KINDS, Labels, VectorIndex, Vectors, load_index, new_index, resolve_kind
from stm_retriever.index.kinds.recipes import check_kind, fits, lists_for
from stm_retriever.index.kinds.rows import RowLabels

DIMENSION = 32
COUNT = 3000
FACTORIES = ("factory:HNSW16,SQ8", "factory:IVF32,Flat", "factory:PCA16,IVF32,SQ8", "factory:RaBitQfs")
EVERY = (*KINDS, *FACTORIES)
LOSSY = (
    "ivf-pq",
    "sq8",
    "rabitq",
    "binary",
    "factory:HNSW16,SQ8",
    "factory:PCA16,IVF32,SQ8",
    "factory:RaBitQfs",
)


def _vectors(count: int, seed: int = 0) -> Vectors:
    """Clustered, as real ones are: 60 topics."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(99).standard_normal((60, DIMENSION))
    found = topics[rng.integers(0, 60, count)] + 0.6 * rng.standard_normal((count, DIMENSION))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


VECTORS = _vectors(COUNT)
LABELS = np.arange(COUNT, dtype=np.int64) * 3 + 10
QUERIES = _vectors(40, seed=1)


def _sample(count: int) -> Vectors:
    return VECTORS[:: max(1, COUNT // count)][:count]


def _filled(kind: str) -> VectorIndex:
    index = new_index(kind, DIMENSION, expected=COUNT, sample=_sample)
    for start in range(0, COUNT, 700):
        index.add(LABELS[start : start + 700], VECTORS[start : start + 700])
    return index


def _exact(rows: Labels, k: int = 10) -> list[set[int]]:
    scores = QUERIES @ VECTORS[rows].T
    return [set(LABELS[rows][np.argsort(-row)[:k]].tolist()) for row in scores]


def _recall(index: VectorIndex, rows: Labels, *, allowed: Labels | None = None, k: int = 10) -> float:
    found = index.search(QUERIES, k * index.candidates_factor, allowed=allowed)
    pairs = zip(found, _exact(rows, k), strict=True)
    return float(np.mean([len(set(labels.tolist()) & true) / len(true) for labels, true in pairs]))


@pytest.mark.parametrize("kind", EVERY)
def test_a_kind_finds_most_of_the_nearest_by_default_also_among_a_few_and_after_deletes(kind: str) -> None:
    index = _filled(kind)
    every = np.arange(COUNT)
    assert len(index) == COUNT
    assert _recall(index, every) >= 0.9
    for share in (0.01, 0.1, 0.5, 0.9):
        rows = np.sort(np.random.default_rng(3).choice(COUNT, int(share * COUNT), replace=False))
        allowed = LABELS[rows]
        for labels in index.search(QUERIES, 7, allowed=allowed):
            assert len(labels) == 7
            assert np.isin(labels, allowed).all()
        assert _recall(index, rows, allowed=allowed) >= 0.9
    index.remove(LABELS[::2])
    index.remove(LABELS[:2])  # one is gone already
    index.remove(np.array([1, 2, 999_999], np.int64))  # it never had these
    left = np.setdiff1d(every[1::2], [1])
    assert len(index) == len(left)
    found = index.search(QUERIES, 10)
    assert all(len(labels) == 10 and np.isin(labels, LABELS[left]).all() for labels in found)
    assert _recall(index, left) >= 0.9
    assert (
        len(index.search(QUERIES[:1], 10, allowed=LABELS[:4])[0]) == 1
    )  # label 1 and the even rows are gone


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "factory:IVF32,Flat"])
def test_an_exact_kind_filters_exactly_and_gives_vectors_back(kind: str) -> None:
    index = _filled(kind)
    for share in (0.002, 0.01, 0.04):
        rows = np.sort(np.random.default_rng(5).choice(COUNT, int(share * COUNT), replace=False))
        assert _recall(index, rows, allowed=LABELS[rows], k=5) == 1.0
    rows = np.array([5, 2999, 0])
    stored = index.reconstruct(LABELS[rows])
    assert stored is not None
    np.testing.assert_array_equal(stored, VECTORS[rows])
    with pytest.raises(KeyError, match="1 of 2 labels"):
        index.reconstruct(np.array([LABELS[0], 11]))
    assert index.candidates_factor == 1


@pytest.mark.parametrize("kind", LOSSY)
def test_a_kind_that_keeps_codes_gives_no_vectors_and_asks_for_more_candidates(kind: str) -> None:
    index = _filled(kind)
    assert index.reconstruct(LABELS[:2]) is None
    assert index.candidates_factor > 1


@pytest.mark.parametrize("kind", EVERY)
def test_a_saved_index_answers_the_same_and_its_file_is_left_alone_by_later_changes(
    tmp_path: Path, kind: str
) -> None:
    index = _filled(kind)
    index.remove(LABELS[5:50])
    path = tmp_path / "index.faiss"
    index.save(path)
    before = path.read_bytes()
    expected = index.search(QUERIES, 10)
    for mmap in (True, False):
        again = load_index(kind, DIMENSION, path, mmap=mmap)
        assert len(again) == COUNT - 45
        for mine, theirs in zip(again.search(QUERIES, 10), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        new = _vectors(3, seed=9)
        again.add(np.array([100_000, 100_001, 100_002]), new)
        again.remove(LABELS[100:200])
        assert len(again) == COUNT - 45 + 3 - 100
        found = again.search(new, 5 * again.candidates_factor)
        assert [100_000 + place in labels for place, labels in enumerate(found)] == [True] * 3
        assert path.read_bytes() == before


def test_rows_are_found_by_label_while_labels_run_on_and_after_gaps_and_removals() -> None:
    rows = RowLabels(np.arange(5, 105))
    asked = np.array([104, 3, 5, 105, 60])
    assert rows.find(asked).tolist() == [99, 0, 55]
    rows.append(np.array([200, 150]))
    assert rows.find(np.array([150, 105, 200, 5])).tolist() == [101, 100, 0]
    rows.bury(np.array([0]))
    assert rows.find(np.array([5, 6])).tolist() == [1]
    assert rows.live().tolist() == [*range(6, 105), 150, 200]
    assert RowLabels(np.array([7, 6, 5])).find(np.array([5, 7])).tolist() == [2, 0]
    assert RowLabels().find(asked).tolist() == []


def test_vectors_are_given_back_also_after_additions_and_removals_have_moved_them() -> None:
    for kind in ("flat", "hnsw", "ivf"):
        index = _filled(kind)
        assert np.array_equal(index.reconstruct(LABELS[:5]), VECTORS[:5])
        index.remove(LABELS[2:1500])
        index.add(np.arange(100_000, 101_498), VECTORS[2:1500])  # as many rows or labels as before
        assert np.array_equal(index.reconstruct(LABELS[-5:]), VECTORS[-5:])
        assert np.array_equal(index.reconstruct(np.arange(100_000, 100_005)), VECTORS[2:7])


@pytest.mark.parametrize("kind", EVERY)
def test_an_empty_index_finds_nothing_and_k_beyond_it_finds_all(kind: str) -> None:
    empty = new_index(kind, DIMENSION)
    assert [labels.tolist() for labels in empty.search(QUERIES[:2], 5)] == [[], []]
    assert empty.search(QUERIES[:1], 5, allowed=np.array([1, 2]))[0].tolist() == []
    index = _filled(kind)
    assert index.search(QUERIES[:0], 5) == []
    found = index.search(QUERIES[:2], COUNT + 10)
    assert [len(np.unique(labels)) for labels in found] == [COUNT, COUNT]
    assert [labels.tolist() for labels in index.search(QUERIES[:1], 5, allowed=np.array([1, 2]))] == [[]]
    index.remove(LABELS)
    assert len(index) == 0
    assert index.search(QUERIES[:1], 5)[0].tolist() == []


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-pq", "binary"])
def test_threads_that_search_at_once_find_what_one_finds(kind: str) -> None:
    index = _filled(kind)
    index.remove(LABELS[::5])
    rows = np.arange(1, COUNT, 3)

    def work(number: int) -> list[int]:
        query = QUERIES[number % 40 : number % 40 + 1]
        allowed = LABELS[rows] if number % 2 else None
        return index.search(query, 10, allowed=allowed)[0].tolist()

    expected = [work(number) for number in range(80)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(80))) == expected


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq", "rabitq", "sq8", "factory:IVF32,Flat"])
def test_with_too_few_vectors_to_train_on_a_kind_is_exact_and_says_when_it_could_be_built(
    tmp_path: Path, kind: str
) -> None:
    index = new_index(kind, DIMENSION, expected=100, sample=lambda count: VECTORS[:100])
    index.add(LABELS[:100], VECTORS[:100])
    assert _recall(index, np.arange(100)) == 1.0
    assert index.stale is None
    index.save(tmp_path / "index.faiss")
    again = load_index(kind, DIMENSION, tmp_path / "index.faiss")
    again.add(LABELS[100:], VECTORS[100:])
    assert again.stale is not None
    assert f"{COUNT} vectors flat" in again.stale
    assert _filled(kind).stale is None


def test_deleted_documents_and_growth_make_an_index_stale() -> None:
    index = _filled("hnsw")
    index.remove(LABELS[: COUNT // 4])
    assert index.stale is None
    index.remove(LABELS[: COUNT // 3])
    assert index.stale is not None
    assert "1000 of 3000 vectors are of deleted" in index.stale
    small = new_index("ivf", DIMENSION, expected=1000, sample=lambda count: VECTORS[:1000])
    small.add(LABELS, VECTORS)
    assert small.stale is None
    small.add(np.arange(100_000, 100_000 + COUNT), _vectors(COUNT, 4))
    assert small.stale is not None
    assert "6000 vectors in 25 lists" in small.stale


def test_auto_goes_by_size_and_says_why() -> None:
    assert resolve_kind("auto", count=1000, dimension=384)[0] == "flat"
    kind, why = resolve_kind("auto", count=200_000, dimension=384)
    assert kind == "hnsw"
    assert "200000 vectors of 384 dimensions are too many" in why
    kind, why = resolve_kind("auto", count=50_000_000, dimension=1024)
    assert (kind, "GiB of memory" in why) == ("ivf-pq", True)
    assert resolve_kind("sq8", count=5, dimension=4) == ("sq8", "asked for")


def test_an_index_that_auto_chose_says_when_another_kind_suits_it_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stm_retriever.index.kinds.recipes.FLAT_NUMBERS", 2000 * DIMENSION)
    index = new_index("auto", DIMENSION)
    index.add(LABELS[:2000], VECTORS[:2000])
    assert index.stale is None
    index.add(LABELS[2000:], VECTORS[2000:])
    assert index.stale is not None
    assert "'hnsw' suits it better" in index.stale
    grown = new_index("auto", DIMENSION, expected=COUNT)
    grown.add(LABELS, VECTORS)
    assert grown.stale is None
    for made in (index, grown):
        made.save(tmp_path / "index.faiss")
        again = load_index("auto", DIMENSION, tmp_path / "index.faiss")
        assert again.stale == made.stale
        assert _recall(again, np.arange(COUNT)) >= 0.95


@pytest.mark.parametrize("kind", ["tree", "", "factory:", "Flat", "factory:IDMap,Flat"])
def test_what_is_no_kind_is_a_config_error_with_the_way_out(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"kind='" + kind):
        check_kind(kind)


def test_a_factory_string_that_faiss_does_not_know_is_named_with_its_cause() -> None:
    with pytest.raises(ConfigError, match=r"'factory:NoSuchThing7'.*32 dimensions.*factory"):
        new_index("factory:NoSuchThing7", DIMENSION)


@pytest.mark.parametrize(("made", "asked"), [("hnsw", "ivf"), ("ivf", "flat"), ("sq8", "factory:HNSW16,SQ8")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, made: str, asked: str) -> None:
    path = tmp_path / "index.faiss"
    _filled(made).save(path)
    with pytest.raises(ValueError, match=f"where an index of the kind '{asked}' is expected"):
        load_index(asked, DIMENSION, path)


def test_a_file_of_another_dimension_or_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    _filled("flat").save(path)
    with pytest.raises(ValueError, match="of 32 dimensions"):
        load_index("flat", 16, path)
    bare = faiss.IndexFlatIP(DIMENSION)
    faiss.write_index(bare, str(path))
    with pytest.raises(ValueError, match="without labels"):
        load_index("flat", DIMENSION, path)
    far = faiss.IndexIDMap(faiss.IndexFlatL2(DIMENSION))
    far.add_with_ids(VECTORS[:3], LABELS[:3])
    faiss.write_index(far, str(path))
    with pytest.raises(ValueError, match="another metric"):
        load_index("flat", DIMENSION, path)


def test_a_flat_file_means_the_same_to_faiss_alone_and_an_older_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    _filled("flat").save(path)
    bare = faiss.read_index(str(path))
    assert bare.search(VECTORS[7:8], 1)[1][0, 0] == LABELS[7]
    older = faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION))  # as version 0.1 wrote it
    older.add_with_ids(VECTORS, LABELS)
    faiss.write_index(older, str(path))
    assert _recall(load_index("flat", DIMENSION, path), np.arange(COUNT)) == 1.0


def test_search_parameters_are_set_when_an_index_is_made_or_loaded(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    index = new_index("hnsw", DIMENSION, parameters={"efSearch": 17, "nprobe": 3})
    index.add(LABELS, VECTORS)
    index.save(path)
    assert index.parameters == {"efSearch": 17}  # type: ignore[attr-defined]
    again = load_index("hnsw", DIMENSION, path, parameters={"efSearch": 33})
    assert again.parameters == {"efSearch": 33}  # type: ignore[attr-defined]
    again.add(np.array([1]), VECTORS[:1])  # the first change copies the index out of the file
    assert again.parameters == {"efSearch": 33}  # type: ignore[attr-defined]
    lossy = new_index("sq8", DIMENSION, expected=COUNT, sample=_sample, parameters={"candidates_factor": 5})
    assert lossy.candidates_factor == 5


def test_lists_grow_with_the_square_root_and_never_beyond_what_can_be_trained() -> None:
    assert lists_for(200_000) == 894
    assert lists_for(1000) == 25
    assert lists_for(200_000, 3900) == 100
    assert lists_for(10) == 4
    for count in (1000, 20_000, 5_000_000):
        assert fits(lists_for(count)) >= 0.9 * count
