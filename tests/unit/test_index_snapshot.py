"""Snapshots of any kind: damage is found, and a stranger's file is tried out in a child process first."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from stm_retriever.folder import sha256_file
from stm_retriever.index import digest
from stm_retriever.index.kinds import VectorIndex, new_index, trust
from stm_retriever.index.kinds.probe import try_index
from stm_retriever.index.manifest import EmbedderRef, IndexManifest, SnapshotRef
from stm_retriever.index.snapshot import load_snapshot, remove_others, save_snapshot

DIMENSION = 16
COUNT = 2500
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((COUNT, DIMENSION), dtype=np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
KINDS = ("flat", "hnsw", "ivf", "ivf-pq", "sq8", "rabitq", "binary", "factory:PCA8,IVF16,SQ8")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def _index(kind: str) -> VectorIndex:
    index = new_index(kind, DIMENSION, expected=COUNT, sample=lambda count: VECTORS[:count])
    index.add(np.arange(1, COUNT + 1), VECTORS)
    index.remove(np.arange(10, 40))
    return index


def _manifest(kind: str, ref: SnapshotRef) -> IndexManifest:
    nobody = EmbedderRef(name="x", fingerprint="x", dimension=DIMENSION, variant="fp32", path="x")
    return IndexManifest(
        index_id="1", embedder=nobody, kind=kind, dimension=DIMENSION, snapshot=ref, created_by="test"
    )


def _saved(folder: Path, kind: str) -> IndexManifest:
    return _manifest(kind, save_snapshot(folder, _index(kind), generation=1, position=7))


def _with_new_checksum(folder: Path, manifest: IndexManifest) -> IndexManifest:
    """What somebody who rewrites the file would write beside it."""
    assert manifest.snapshot is not None
    found = sha256_file(folder / manifest.snapshot.file)
    return manifest.model_copy(update={"snapshot": manifest.snapshot.model_copy(update={"sha256": found})})


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded_and_answers_the_same(tmp_path: Path, kind: str) -> None:
    manifest = _saved(tmp_path, kind)
    for mmap in (True, False):
        again = load_snapshot(tmp_path, manifest, mmap=mmap)
        assert again is not None
        assert len(again) == COUNT - 30
        expected = _index(kind).search(VECTORS[:5], 5)
        assert [row.tolist() for row in again.search(VECTORS[:5], 5)] == [row.tolist() for row in expected]


def test_our_own_snapshots_are_opened_without_a_child_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = _saved(tmp_path, "hnsw")
    monkeypatch.setattr(subprocess, "run", None)
    assert load_snapshot(tmp_path, manifest) is not None


def test_a_strangers_snapshot_is_tried_out_once(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = _saved(tmp_path, "flat")
    state.rename(tmp_path / "another-users-state")
    started: list[list[str]] = []
    real = subprocess.run

    def counted(command: list[str], **options: object) -> object:
        started.append(command)
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    assert load_snapshot(tmp_path, manifest) is not None
    assert load_snapshot(tmp_path, manifest) is not None
    assert len(started) == 1
    assert load_snapshot(tmp_path, manifest, verify_in_child=True) is not None
    assert len(started) == 2


def test_without_a_place_for_notes_snapshots_still_load(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write_text("a file where the folder should be")
    manifest = _saved(tmp_path, "flat")
    tried: list[Path] = []
    monkeypatch.setattr("stm_retriever.index.snapshot.try_out", lambda path, kind, size: tried.append(path))
    assert load_snapshot(tmp_path, manifest) is not None
    assert len(tried) == 1


def test_a_file_that_kills_the_process_that_reads_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _saved(tmp_path, "flat")
    path = tmp_path / "vectors-1.faiss"
    path.write_bytes(path.read_bytes() + b"\0")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with caplog.at_level(logging.WARNING):
        assert load_snapshot(tmp_path, _with_new_checksum(tmp_path, manifest)) is None
    assert "not written here" in caplog.text
    assert "rebuilding it from the documents" in caplog.text


def test_where_no_child_can_be_started_a_strangers_file_is_not_used(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _saved(tmp_path, "flat")
    state.rename(tmp_path / "another-users-state")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    assert load_snapshot(tmp_path, manifest) is None
    assert "could not be tried out" in caplog.text


def test_a_damaged_file_is_found_by_its_checksum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = _saved(tmp_path, "ivf")
    path = tmp_path / "vectors-1.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert load_snapshot(tmp_path, manifest) is None
    assert "sha256 is" in caplog.text
    path.write_bytes(bytes(data[: len(data) // 2]))
    assert load_snapshot(tmp_path, manifest) is None
    path.unlink()
    assert load_snapshot(tmp_path, manifest) is None


def test_a_large_snapshot_is_hashed_by_blocks_and_damage_is_found_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "BLOCK_BYTES", 1 << 16)
    saved = save_snapshot(tmp_path, _index("flat"), generation=1, position=7)
    assert saved.block_bytes == 1 << 16
    path = tmp_path / saved.file
    whole = path.read_bytes()
    assert digest.digest_of(path, saved.block_bytes) == saved.sha256
    assert saved.sha256 != sha256_file(path)
    for place in (*range(0, len(whole), 1 << 15), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert digest.digest_of(path, saved.block_bytes) != saved.sha256
    for other in (whole[:-1], whole[: 1 << 16], whole + b"\0", whole[1 << 16 :] + whole[: 1 << 16], b""):
        path.write_bytes(other)
        assert digest.digest_of(path, saved.block_bytes) != saved.sha256


def test_the_hash_of_a_small_snapshot_and_of_an_older_one_is_that_of_the_file(tmp_path: Path) -> None:
    manifest = _saved(tmp_path, "flat")
    assert manifest.snapshot is not None
    assert manifest.snapshot.block_bytes is None
    assert manifest.snapshot.sha256 == sha256_file(tmp_path / manifest.snapshot.file)
    older = manifest.snapshot.model_dump(exclude={"block_bytes"})
    assert SnapshotRef.model_validate(older) == manifest.snapshot


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_the_trial(tmp_path: Path, kind: str) -> None:
    _saved(tmp_path, kind)
    try_index(tmp_path / "vectors-1.faiss", kind, DIMENSION)


def _links(index: faiss.IndexHNSW) -> np.ndarray:
    return faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())


def _far_link(index: faiss.IndexHNSW) -> None:
    _links(index)[3] = COUNT + 10


def _far_entry(index: faiss.IndexHNSW) -> None:
    index.hnsw.entry_point = COUNT


def _upper_link(index: faiss.IndexHNSW) -> None:
    levels = faiss.vector_to_array(index.hnsw.levels)
    offsets = faiss.vector_to_array(index.hnsw.offsets)
    node = int(np.argmax(levels))
    _links(index)[int(offsets[node]) + index.hnsw.cum_nb_neighbors(1)] = int(np.argmin(levels))


def _wrong_levels(index: faiss.IndexHNSW) -> None:
    levels = faiss.vector_to_array(index.hnsw.levels)
    levels[0] = 40
    faiss.copy_array_to_vector(levels, index.hnsw.levels)


def _far_row(index: faiss.IndexIVF) -> None:
    number = next(one for one in range(index.nlist) if index.invlists.list_size(one))
    faiss.rev_swig_ptr(index.invlists.get_ids(number), 1)[0] = COUNT + 3


def _far_map(index: faiss.IndexIVF) -> None:
    places = faiss.vector_to_array(index.direct_map.array)
    places[0] = (COUNT << 32) | 5
    faiss.copy_array_to_vector(places, index.direct_map.array)


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("hnsw", _far_link, "a link to a node that is not there|neighbor.*out of range"),
        ("hnsw", _far_entry, "starts at a node that is not there|entry_point.*out of range"),
        ("hnsw", _upper_link, "a link to a node of a lower level"),
        ("hnsw", _wrong_levels, "a node of no level|levels.*out of range"),
        ("ivf", _far_row, "a list names a vector that is not there"),
        ("ivf", _far_map, "leads out of them"),
    ],
)
def test_numbers_that_lead_out_of_the_index_are_found_before_a_search(
    tmp_path: Path, kind: str, damage: object, message: str
) -> None:
    index = _index(kind)
    damage(index.faiss_index)  # type: ignore[operator, attr-defined]
    index.save(tmp_path / "bad.faiss")
    # Newer versions of FAISS check some of it when they read.
    with pytest.raises((ValueError, RuntimeError), match=message):
        try_index(tmp_path / "bad.faiss", kind, DIMENSION)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-pq"])
def test_mutated_files_with_matching_checksums_never_end_this_process(tmp_path: Path, kind: str) -> None:
    manifest = _saved(tmp_path, kind)
    path = tmp_path / "vectors-1.faiss"
    whole = path.read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(12):
        data = bytearray(whole)
        first = int(rng.integers(0, 400 if rng.random() < 0.5 else len(data) - 8))
        data[first : first + int(rng.integers(1, 8))] = rng.bytes(8)
        path.write_bytes(bytes(data))
        index = load_snapshot(tmp_path, _with_new_checksum(tmp_path, manifest))
        if index is not None:  # what was changed is a vector, a label or a parameter, but nothing that kills
            for allowed in (None, np.arange(100, 200)):
                assert len(index.search(VECTORS[:20], 10, allowed=allowed)) == 20


def test_labels_that_come_twice_are_found(tmp_path: Path) -> None:
    twice = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSION))
    twice.add_with_ids(VECTORS[:3], np.array([1, 2, 2]))
    faiss.write_index(twice, str(tmp_path / "bad.faiss"))
    with pytest.raises(ValueError, match="come twice"):
        try_index(tmp_path / "bad.faiss", "flat", DIMENSION)


def test_notes_are_few_private_and_named_by_hashes_only(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_REMEMBERED", 3)
    for number in range(6):
        trust.remember(f"{number:064x}")
    assert len(list(trust.state_folder().iterdir())) == 3
    assert trust.is_known(f"{5:064x}")
    assert not trust.is_known("../../escape")
    trust.remember("../../escape")
    assert not (state / "escape").exists()
    assert not (state.parent / "escape").exists()


def test_other_snapshots_and_what_a_crash_left_are_removed(tmp_path: Path) -> None:
    for name in ("vectors-1.faiss", "vectors-2.faiss", "vectors-3.faiss.partial", "documents.sqlite"):
        (tmp_path / name).touch()
    remove_others(tmp_path, "vectors-2.faiss")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "documents.sqlite",
        "vectors-2.faiss",
    ]
