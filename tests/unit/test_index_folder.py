"""The index folder against a dict and brute force, whatever is done to it in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stm_retriever import DataError, Document, IndexFolderError
from stm_retriever.filters import matches
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef
from stm_retriever.index.vectors import Vectors

DIMENSION = 8
EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=DIMENSION, variant="fp32")
WORDS = ("sea", "river", "heart", "pain", "apple")

IDS = st.lists(st.integers(0, 15).map("d{}".format), min_size=1, max_size=6, unique=True)
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
FILTERS: st.SearchStrategy[dict[str, Any] | None] = st.sampled_from(
    [
        None,
        {"words": "sea"},
        {"length": {"$gte": 2}},
        {"$or": [{"words": "apple"}, {"length": 1}]},
        {"$not": {"words": {"$in": ["heart", "pain"]}}},
        {"$id": {"$in": ["d1", "d2", "d99"]}},
        {"words": "never"},
    ]
)


def vector_of(text: str) -> Vectors:
    """Give a text its own vector, of length 1."""
    vector = np.random.default_rng(list(text.encode())).standard_normal(DIMENSION)
    unit: Vectors = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def document_of(name: str, text: str) -> Document:
    """Make a document that the filters tell apart."""
    return Document(id=name, text=text, metadata={"words": text.split(), "length": len(text.split())})


def _put(folder: IndexFolder, texts: dict[str, str]) -> None:
    vectors = np.array([vector_of(text) for text in texts.values()]).reshape(-1, DIMENSION)
    folder.put([document_of(name, text) for name, text in texts.items()], vectors)


class _Machine(RuleBasedStateMachine):
    kind = "flat"

    def __init__(self) -> None:
        super().__init__()
        self._place = Path(tempfile.mkdtemp())
        self._texts: dict[str, str] = {}  # in order of insertion

    @initialize()
    def create(self) -> None:
        self._folder = IndexFolder.create(self._place / "index", embedder=EMBEDDER, kind=self.kind)
        self._reader: IndexFolder | None = None

    @rule(ids=IDS, texts=st.lists(TEXTS, min_size=6, max_size=6))
    def put(self, ids: list[str], texts: list[str]) -> None:
        new = dict(zip(ids, texts, strict=False))
        unchanged = self._folder.unchanged([document_of(name, text) for name, text in new.items()])
        assert unchanged == [self._texts.get(name) == text for name, text in new.items()]
        _put(self._folder, new)
        for name, text in new.items():
            if self._texts.get(name) != text:  # one that is there just so keeps its place
                self._texts.pop(name, None)
                self._texts[name] = text

    @rule(ids=IDS)
    def delete(self, ids: list[str]) -> None:
        assert self._folder.delete(ids) == len(self._texts.keys() & set(ids))
        for name in ids:
            self._texts.pop(name, None)

    @rule(where=FILTERS.filter(bool))
    def delete_where(self, where: dict[str, Any]) -> None:
        gone = self._passing(where)
        assert self._folder.delete_where(where) == len(gone)
        for name in gone:
            del self._texts[name]

    @rule(query=TEXTS, k=st.integers(1, 20), where=FILTERS)
    def search(self, query: str, k: int, where: dict[str, Any] | None) -> None:
        self._check_search(self._folder, query, k, where)

    @rule(query=TEXTS, k=st.integers(1, 20), where=FILTERS)
    def search_in_another_process_or_so(self, query: str, k: int, where: dict[str, Any] | None) -> None:
        if self._reader is None:
            self._reader = IndexFolder(self._place / "index", read_only=True)
        self._check_search(self._reader, query, k, where)

    @rule(where=FILTERS, query=TEXTS)
    def search_words(self, where: dict[str, Any] | None, query: str) -> None:
        found = {document.id for document, _ in self._folder.lexical([query], 100, where=where)[0]}
        words = set(query.split())
        assert found == {name for name in self._passing(where) if words & set(self._texts[name].split())}

    @rule()
    def snapshot(self) -> None:
        self._folder.snapshot()

    @rule()
    def compact(self) -> None:
        self._folder.compact()

    @rule()
    def reopen(self) -> None:
        self._folder.close()
        self._folder = IndexFolder(self._place / "index")

    @rule()
    def die_and_reopen(self) -> None:
        self._folder._store.close()
        self._folder._lock_file.release()
        self._folder = IndexFolder(self._place / "index")

    @precondition(lambda self: hasattr(self, "_folder"))
    @invariant()
    def holds_what_it_was_given(self) -> None:
        assert [document.id for document in self._folder.documents()] == list(self._texts)
        assert self._folder.count() == len(self._texts)
        stored = self._folder.vectors_of(list(self._texts))
        assert np.allclose(
            stored, np.array([vector_of(t) for t in self._texts.values()]).reshape(-1, 8), atol=1e-6
        )

    def teardown(self) -> None:
        for folder in (getattr(self, "_folder", None), getattr(self, "_reader", None)):
            if folder is not None:
                folder.close()
        shutil.rmtree(self._place)

    def _passing(self, where: dict[str, Any] | None) -> list[str]:
        return [
            name
            for name, text in self._texts.items()
            if matches(where, document_of(name, text).metadata, id=name)
        ]

    def _check_search(self, folder: IndexFolder, query: str, k: int, where: dict[str, Any] | None) -> None:
        passing = self._passing(where)
        scores = np.array(
            [vector_of(self._texts[name]).astype(np.float64) @ vector_of(query) for name in passing]
        )
        expected = [passing[place] for place in np.argsort(-scores, kind="stable")[:k]]
        found = folder.search(vector_of(query)[None], k, where=where)[0]
        assert [document.id for document, _ in found] == expected
        assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True)[:k], abs=1e-5)
        assert [document for document, _ in found] == [document_of(n, self._texts[n]) for n in expected]


class _HnswMachine(_Machine):
    kind = "hnsw"


_settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFlatAgainstADict = _Machine.TestCase
TestFlatAgainstADict.settings = _settings
TestHnswAgainstADict = _HnswMachine.TestCase
TestHnswAgainstADict.settings = _settings


@pytest.fixture
def folder(tmp_path: Path) -> IndexFolder:
    folder = IndexFolder.create(tmp_path / "index", embedder=EMBEDDER)
    _put(folder, {f"d{number}": f"{WORDS[number % 5]} {number}" for number in range(40)})
    return folder


def test_what_is_unchanged_is_not_written_again(folder: IndexFolder) -> None:
    position = folder._store.last_position()
    texts = {document.id: document.text for document in folder.documents()}
    _put(folder, texts)
    assert folder._store.last_position() == position
    _put(folder, {**texts, "d7": "changed"})
    assert folder._store.last_position() == position + 2
    assert [document.id for document in folder.documents()][-1] == "d7"


def test_the_same_text_with_another_vector_is_written(folder: IndexFolder) -> None:
    folder.put([document_of("d3", "pain 3")], vector_of("elsewhere")[None])
    assert folder.search(vector_of("elsewhere")[None], 1)[0][0][0].id == "d3"
    assert np.allclose(folder.vectors_of(["d3"]), vector_of("elsewhere"), atol=1e-6)


def test_the_vector_of_an_unknown_document_is_an_error_that_names_it(folder: IndexFolder) -> None:
    with pytest.raises(DataError, match="no document 'nobody'"):
        folder.vectors_of(["d1", "nobody"])
    assert folder.vectors_of([]).shape == (0, DIMENSION)


def test_the_kind_is_changed_without_encoding_and_kept(folder: IndexFolder) -> None:
    expected = folder.search(vector_of("sea 5")[None], 7)
    reader = IndexFolder(folder.path, read_only=True)
    for kind in ("hnsw", "flat"):
        folder.change_kind(kind)
        assert folder.manifest.kind == kind
        assert folder.search(vector_of("sea 5")[None], 7) == expected
        assert IndexFolder(folder.path).search(vector_of("sea 5")[None], 7) == expected
        assert reader.search(vector_of("sea 5")[None], 7) == expected


@pytest.mark.parametrize("kind", ["ivf-pq", "sq8", "rabitq", "binary"])
def test_a_kind_that_keeps_codes_is_exact_among_few_matches(tmp_path: Path, kind: str) -> None:
    count = 2500
    vectors = np.random.default_rng(3).standard_normal((count, DIMENSION)).astype(np.float32)
    vectors[50:500:50] = vectors[0]  # equal ones go by insertion
    folder = IndexFolder.create(tmp_path / "index", embedder=EMBEDDER, kind=kind)
    documents = [
        Document(id=str(number), text=f"sea {number}", metadata={"part": number % 50})
        for number in range(count)
    ]
    folder.put(documents, vectors)
    folder.compact()  # trained by now
    assert not folder._live.alive().keeps_vectors
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query, k in ((vectors[0], 15), (vectors[1], 10), (vectors[2], 1000)):
        scores = unit[::50] @ (query / np.linalg.norm(query))
        expected = [str(50 * place) for place in np.lexsort((np.arange(50), -scores.round(6)))[:k]]
        found = folder.search(query[None], k, where={"part": 0})[0]
        assert [document.id for document, _ in found] == expected
    folder.delete([str(number) for number in range(0, count, 50)])
    assert folder.search(vectors[:2], 10, where={"part": 0}) == [[], []]
    folder.close()


def test_compaction_gives_space_back_and_rebuilds_a_worn_index(tmp_path: Path) -> None:
    folder = IndexFolder.create(tmp_path / "index", embedder=EMBEDDER, kind="hnsw")
    documents = [Document(id=f"d{number}", text=f"{number} " + "long " * 500) for number in range(400)]
    folder.put(documents, np.random.default_rng(0).standard_normal((400, DIMENSION)).astype(np.float32))
    folder.snapshot()
    folder.delete([f"d{number}" for number in range(350)])
    folder.search(vector_of("sea")[None], 1)
    folder._store.tidy(vacuum=False)
    before = sum(path.stat().st_size for path in folder.path.iterdir())
    expected = folder.search(vector_of("sea")[None], 50)
    folder.compact()
    assert sum(path.stat().st_size for path in folder.path.iterdir()) < before / 2
    assert folder._live.alive().stale is None
    assert folder.search(vector_of("sea")[None], 50) == expected
    folder.close()


def test_tuning_keeps_its_parameters_in_the_manifest(tmp_path: Path) -> None:
    folder = IndexFolder.create(tmp_path / "index", embedder=EMBEDDER, kind="hnsw")
    _put(folder, {f"d{number}": f"text {number}" for number in range(500)})
    result = folder.tune(recall=0.9, k=5)
    assert result.recall >= 0.9
    assert folder.manifest.search_parameters == result.parameters
    folder.close()
    folder = IndexFolder(tmp_path / "index")
    assert folder.manifest.search_parameters == result.parameters
    assert folder.search(vector_of("text 9")[None], 1)[0][0][0].id == "d9"
    folder.close()


def test_words_are_stemmed_and_nothing_in_a_query_is_an_operator(folder: IndexFolder) -> None:
    folder.put(
        [
            Document(id="cat", text="Cats were running to the café"),
            Document(id="not", text="the and of near"),
            Document(id="long", text="sea " * 50 + "running"),
        ],
        np.eye(3, DIMENSION, dtype=np.float32),
    )
    assert [d.id for d, _ in folder.lexical(["the cat runs to a CAFE"], 3)[0]] == ["cat", "long"]
    assert folder.lexical(["the and"], 3)[0][0][0].id == "not"
    for query in ('cat" OR "', "cat* AND NOT (", "text:cat", "NEAR(cat, 3)", "cat -run ^ {x}", "cat\x00dog"):
        assert "cat" in [d.id for d, _ in folder.lexical([query], 3)[0]], query
    assert folder.lexical(["", "?! ...", "\ud800", "_", "unheard-of"], 3) == [[], [], [], [], []]
    assert folder.lexical(["word " * 5000 + " ".join(map(str, range(5000)))], 3)[0]
    scores = [score for _, score in folder.lexical(["sea running"], 10)[0]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_a_closed_folder_says_so_whatever_is_asked(folder: IndexFolder) -> None:
    folder.close()
    for ask in (
        lambda: folder.search(vector_of("sea")[None], 1),
        lambda: folder.lexical(["sea"], 1),
        lambda: folder.count(where={"length": 1}),
        lambda: folder.delete_where({"length": 1}),
        folder.compact,
        folder.snapshot,
    ):
        with pytest.raises(IndexFolderError, match="is closed"):
            ask()
