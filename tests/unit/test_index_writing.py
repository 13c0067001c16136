"""Adding, replacing and deleting: everything of a call or nothing."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import ConfigError, DataError, Document, Embedder, IndexFolderError, Retriever

A = Document(id="a", text="red apple", metadata={"year": 2020})
B = Document(id="b", text="the sea", parent_id="book", start=3, end=10)
C = Document(id="c", text="heart pain")


def test_documents_come_back_as_they_were_added(empty_retriever: Retriever) -> None:
    odd = Document(
        id="ünï \x00 'code'; DROP TABLE documents--",
        text="line\r\nline \x00 😀 e\u0301",
        metadata={"list": [1, 2.5, None, True, {"deep": "ü"}], "": "", "surrogate": "\ud800", "big": 2**70},
    )
    assert empty_retriever.add([A, B, odd]) == 3
    assert empty_retriever.get([odd.id, "nobody", "a", "b", "a"]) == [odd, None, A, B, A]
    assert list(empty_retriever.documents()) == [A, B, odd]
    assert empty_retriever.count() == len(empty_retriever) == 3


def test_any_iterable_will_do_and_none_is_fine(empty_retriever: Retriever) -> None:
    assert empty_retriever.add(document for document in (A, B)) == 2
    assert empty_retriever.add([]) == 0
    assert empty_retriever.delete([]) == 0
    assert empty_retriever.count() == 2


def test_the_same_id_again_replaces_text_vector_and_metadata(empty_retriever: Retriever) -> None:
    empty_retriever.add([A, B])
    empty_retriever.search("red apple")
    changed = Document(id="a", text="heart pain")
    empty_retriever.add([changed])
    assert empty_retriever.count() == 2
    assert empty_retriever.get(["a"]) == [changed]
    hits = empty_retriever.search("heart pain", k=10)
    assert [hit.id for hit in hits] == ["a", "b"]
    assert hits[0].metadata == {}


def test_deleted_documents_are_found_no_more(empty_retriever: Retriever) -> None:
    empty_retriever.add([A, B, C])
    empty_retriever.search("apple")
    assert empty_retriever.delete(["a", "nobody", "a"]) == 1
    assert [hit.id for hit in empty_retriever.search("red apple")] == ["c", "b"] or [
        hit.id for hit in empty_retriever.search("red apple")
    ] == ["b", "c"]
    assert empty_retriever.get(["a"]) == [None]
    empty_retriever.add([A])
    assert empty_retriever.search("red apple", k=1)[0].id == "a"


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ([C, A, Document(id="c", text="other")], DataError, "id 'c' comes twice.*positions 0 and 2"),
        ([C, Document(id="x", text=" ")], DataError, r"text of document 'x' \(position 1\) is empty"),
        ([C, Document(id="", text="x")], DataError, "position 1 has an empty id"),
        ([C, Document(id=7, text="x")], DataError, "id of the document at position 1 is a int"),  # type: ignore[arg-type]
        ([C, Document(id="x", text="\ud800")], DataError, "text of document 'x'.*lone surrogate"),
        ([C, Document(id="\ud800", text="x")], DataError, "id of the document at position 1.*surrogate"),
        ([C, {"id": "x", "text": "x"}], ConfigError, "Item 1 is a dict, not a Document"),
        ([C, Document(id="x", text="x", start=-1)], DataError, "start=-1"),
        ([C, Document(id="x", text="x", start=5, end=4)], DataError, "ends at 4, before its start 5"),
    ],
)
def test_one_bad_document_is_named_and_nothing_of_the_call_is_written(
    empty_retriever: Retriever, documents: list[Any], error: type[Exception], message: str
) -> None:
    empty_retriever.add([A])
    with pytest.raises(error, match=message):
        empty_retriever.add(documents)
    assert list(empty_retriever.documents()) == [A]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"when": date(2020, 1, 1)},
            r"metadata of document 'x' \(position 0\)\['when'\] is a date.*isoformat",
        ),
        ({"deep": [{"nan": math.nan}]}, r"\['deep'\]\[0\]\['nan'\] is nan"),
        ({"deep": {1: "one"}}, r"\['deep'\] has the key 1, a int"),
        ({"array": np.ones(2)}, r"\['array'\] is a ndarray"),
        ([("a", 1)], "metadata of document 'x'.*is a list"),
    ],
)
def test_metadata_that_json_cannot_hold_is_named(
    empty_retriever: Retriever, metadata: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        empty_retriever.add([Document(id="x", text="x", metadata=metadata)])
    assert empty_retriever.count() == 0


def test_a_bare_string_is_no_list_of_ids(empty_retriever: Retriever) -> None:
    empty_retriever.add([A])
    for call in (empty_retriever.delete, empty_retriever.get):
        with pytest.raises(ConfigError, match=r"Pass \[id\]"):
            call("a")
        with pytest.raises(ConfigError, match="ids are strings"):
            call([1])  # type: ignore[list-item]
    assert empty_retriever.count() == 1


def test_vectors_that_are_there_already_are_not_encoded_again(
    empty_retriever: Retriever, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = tiny_embedder.encode_document([A.text, B.text])
    monkeypatch.setattr(tiny_embedder, "encode_document", None)
    assert empty_retriever.add_vectors([A, B], vectors * 3) == 2
    hit = empty_retriever.search_vector(vectors[1], k=1)[0]
    assert hit.id == "b"
    assert hit.score == pytest.approx(1, abs=1e-6)


def test_vectors_that_do_not_fit_are_errors_and_nothing_is_written(empty_retriever: Retriever) -> None:
    dimension = empty_retriever.embedder.dimension
    for shape in [(1, dimension), (2, dimension - 1), (dimension,)]:
        with pytest.raises(ConfigError, match="Got vectors of shape"):
            empty_retriever.add_vectors([A, B], np.ones(shape))
    for bad in (0.0, math.nan, math.inf):
        vectors = np.ones((2, dimension))
        vectors[1] = bad
        with pytest.raises(DataError, match="Vector 1 is zero or not finite"):
            empty_retriever.add_vectors([A, B], vectors)
    assert empty_retriever.count() == 0


def test_a_full_disk_is_a_typed_error_and_changes_nothing(empty_retriever: Retriever) -> None:
    empty_retriever.add([A, B])
    connection = empty_retriever._index._store.writer().connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    many = [Document(id=f"n{number}", text=f"sea {number}" * 50) for number in range(300)]
    with pytest.raises(IndexFolderError, match=r"database or disk is full.*Free disk space"):
        empty_retriever.add([Document(id="a", text="changed"), *many])
    assert list(empty_retriever.documents()) == [A, B]
    connection.execute(f"PRAGMA max_page_count = {1 << 30}")
    assert empty_retriever.add(many) == 300
    assert empty_retriever.search("red apple", k=1)[0].id == "a"


def test_an_interrupted_replay_is_never_searched(
    empty_retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_retriever.add([A])
    empty_retriever.search("apple")
    index = empty_retriever._index._live.index
    assert index is not None
    empty_retriever.add([B, C])
    empty_retriever.delete(["a"])

    def interrupted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(index, "add", interrupted)
    with pytest.raises(MemoryError):
        empty_retriever.search("apple")
    assert {hit.id for hit in empty_retriever.search("apple")} == {"b", "c"}


def test_a_closed_index_says_so_and_closing_twice_is_fine(tmp_path: Path, tiny_embedder: Embedder) -> None:
    retriever = Retriever.create(tmp_path / "index", embedder=tiny_embedder)
    retriever.close()
    retriever.close()
    with pytest.raises(IndexFolderError, match=r"is closed\. Open it again"):
        retriever.search("apple")
    with pytest.raises(IndexFolderError, match="is closed"):
        retriever.add([A])
