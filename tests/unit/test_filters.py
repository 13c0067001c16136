"""Filters: what they mean, what is refused, and that the index's SQL means the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stm_retriever import ConfigError, Document
from stm_retriever.filters import check_filter, matches
from stm_retriever.index.folder import IndexFolder
from stm_retriever.index.manifest import EmbedderRef

EMBEDDER = EmbedderRef(name="none", fingerprint="sha256:0", dimension=4, variant="fp32")

BOOK: dict[str, Any] = {
    "year": 2020,
    "lang": "en",
    "tags": ["sea", "ship", 7],
    "author": {"name": "Ada", "born": 1815},
    "draft": False,
    "note": None,
    "empty": [],
}


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"year": 2020},
        {"year": 2020.0},
        {"year": {"$eq": 2020}, "lang": "en"},
        {"year": {"$gte": 2020, "$lt": 2021}},
        {"lang": {"$gt": "de", "$lte": "en"}},
        {"lang": {"$in": ["de", "en", 3]}},
        {"tags": "ship"},
        {"tags": {"$gt": 6}},
        {"tags": {"$nin": ["car", 8]}},
        {"author.name": "Ada"},
        {"author": {"$exists": True}},
        {"empty": {"$exists": True}},
        {"note": None},
        {"note": {"$exists": True}},
        {"missing": {"$exists": False}},
        {"missing": {"$ne": 1}},
        {"missing": {"$not": {"$gt": 1}}},
        {"draft": False},
        {"$and": []},
        {"$or": [{"year": 1}, {"lang": "en"}]},
        {"$not": {"year": 1999}},
        {"$not": {"$or": []}},
        {"$id": "book"},
        {"$parent": {"$in": ["shelf", "other"]}},
    ],
)
def test_a_document_that_passes(where: dict[str, Any]) -> None:
    check_filter(where)
    assert matches(where, BOOK, id="book", parent_id="shelf")


@pytest.mark.parametrize(
    "where",
    [
        {"year": "2020"},
        {"draft": 0},
        {"year": {"$gt": 2020}},
        {"year": {"$gte": 2000, "$lt": 2020}},
        {"year": {"$gt": "1"}},
        {"lang": {"$lt": 9}},
        {"tags": {"$ne": "sea"}},
        {"tags": {"$gt": 7, "$lt": 100}},
        {"empty": None},
        {"missing": None},
        {"missing": {"$not": {"$exists": False}}},
        {"lang": {"$in": []}},
        {"$or": []},
        {"$and": [{"year": 2020}, {"lang": "de"}]},
        {"$id": None},
        {"$parent": {"$exists": False}},
    ],
)
def test_a_document_that_does_not_pass(where: dict[str, Any]) -> None:
    check_filter(where)
    assert not matches(where, BOOK, id="book", parent_id="shelf")


def test_the_bounds_of_a_key_hold_for_one_element() -> None:
    assert not matches({"sizes": {"$gt": 3, "$lt": 8}}, {"sizes": [1, 9]})
    assert matches({"sizes": {"$gt": 3, "$lt": 8}}, {"sizes": [1, 5, 9]})
    assert matches({"$and": [{"sizes": {"$gt": 3}}, {"sizes": {"$lt": 8}}]}, {"sizes": [1, 9]})


def test_metadata_cannot_pose_as_the_documents_own_id() -> None:
    assert not matches({"$id": "admin"}, {"$id": "admin"}, id="guest")
    assert not matches({"$parent": "admin"}, {"$parent": "admin"}, id="guest")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("year = 2020", "filter at where is a str"),
        ({"year": {"gte": 1}}, r"where\['year'\]\['gte'\]: there is no operator 'gte'"),
        ({"$gte": 1}, "there is no '\\$gte' around filters"),
        ({"$and": {"a": 1}}, r"where\['\$and'\] is a dict; \$and takes a list"),
        ({"$or": [{"a": 1}, 7]}, r"filter at where\['\$or'\]\[1\] is a int"),
        ({"a": {"$in": "en"}}, r"\['\$in'\] is a str; \$in takes a list"),
        ({"a": {"$in": [[1]]}}, r"\['\$in'\]\[0\] is a list"),
        ({"a": [1, 2]}, r"where\['a'\] is a list.*\$in"),
        ({"a": {"$exists": 1}}, "takes True or False"),
        ({"a": {"$gt": True}}, r"\$gt takes a number or a text"),
        ({"a": {"$lt": None}}, r"\$lt takes a number or a text"),
        ({"a": math.nan}, "NaN"),
        ({"a": {}}, "is empty"),
        ({"a": {"$not": 3}}, r"under a key \$not takes operators"),
        ({1: 2}, "has the key 1, a int"),
        ({"$id": {"$gt": "a"}}, "takes no bounds"),
        ({"$id": {"$not": {"$gt": "a"}}}, "takes no bounds"),
        ({"a": Path("x")}, "is a PosixPath|is a WindowsPath"),
    ],
)
def test_a_filter_that_cannot_be_used_names_its_part(where: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_filter(where)


def test_a_filter_nested_without_end_is_refused_and_not_a_crash() -> None:
    where: dict[str, Any] = {"a": 1}
    for _ in range(10_000):
        where = {"$not": where}
    with pytest.raises(ConfigError, match="deeper than 50"):
        check_filter(where)


KEYS = st.sampled_from(["a", "b", "a.b", "x' OR 1=1 --", "ü", "\ud800", "$id"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, -0.0, 2**53, 2.0**53, 2**53 + 1, 2**63, -(2**63), 2**70, 10**400])
    | st.sampled_from(["", "a", "b", "A", "é", "\ud800", "\x00", "a' OR '1'='1", "l" * 300, "l" * 300 + "m"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
ORDERED = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, 2**53, 2**70, "a", "b", "", "\ud800", "l" * 300, math.inf])
)
BOUNDS = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ORDERED, min_size=1, max_size=2)
PLAIN = st.one_of(
    st.fixed_dictionaries({"$eq": SCALARS}),
    st.fixed_dictionaries({"$ne": SCALARS}),
    st.fixed_dictionaries({"$in": st.lists(SCALARS, max_size=3)}),
    st.fixed_dictionaries({"$nin": st.lists(SCALARS, max_size=3)}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
CONDITIONS = st.one_of(
    PLAIN,
    BOUNDS,
    st.builds(lambda one, two: {**one, **two}, PLAIN, BOUNDS),
    st.builds(lambda c: {"$not": c}, BOUNDS),
)
OWN = st.one_of(
    st.builds(
        lambda key, value: {key: value}, st.sampled_from(["$id", "$parent"]), st.sampled_from(["0", "1", "p"])
    ),
    st.builds(lambda key, value: {key: value}, st.sampled_from(["$id", "$parent"]), PLAIN),
)
FILTERS = st.recursive(
    st.dictionaries(KEYS.filter(lambda key: key != "$id"), SCALARS | CONDITIONS, max_size=2) | OWN,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
        st.builds(lambda one, two: {**one, **two}, inner, inner),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> IndexFolder:
    return IndexFolder.create(tmp_path_factory.mktemp("filters") / "index", embedder=EMBEDDER)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    documents=st.lists(METADATA, min_size=1, max_size=6), filters=st.lists(FILTERS, min_size=1, max_size=8)
)
def test_sql_and_the_definition_agree(
    folder: IndexFolder, documents: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    folder.delete([document.id for document in folder.documents()])
    stored = [
        Document(id=str(number), text="text", metadata=metadata, parent_id="p" if number % 2 else None)
        for number, metadata in enumerate(documents)
    ]
    folder.put(stored, np.ones((len(stored), 4), np.float32))
    query = np.ones((1, 4), np.float32)
    for where in filters:
        check_filter(where)
        expected = [
            document.id
            for document in stored
            if matches(where, document.metadata, id=document.id, parent_id=document.parent_id)
        ]
        assert [document.id for document in folder.documents(where=where)] == expected
        assert folder.count(where=where) == len(expected)
        assert [document.id for document, _ in folder.search(query, 9, where=where)[0]] == expected
        assert sorted(document.id for document, _ in folder.lexical(["text"], 9, where=where)[0]) == expected
    # What a filter deletes leaves no trace that another filter could find.
    for where in filters[:2]:
        if where:
            folder.delete_where(where)
            assert folder.count(where=where) == 0
    folder.delete([document.id for document in stored])
    with folder._store.borrowed() as reader:
        assert reader.connection.execute("SELECT count(*) FROM attributes").fetchone()[0] == 0
        reader.connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")


def test_names_and_values_cannot_inject_sql(folder: IndexFolder) -> None:
    evil = "x'); DROP TABLE documents; --"
    folder.delete([document.id for document in folder.documents()])
    folder.put([Document(id="a", text="a", metadata={evil: evil})], np.ones((1, 4), np.float32))
    for where in ({evil: evil}, {evil: {"$in": [evil]}}, {evil: {"$gte": evil}}, {evil: {"$exists": True}}):
        assert folder.count(where=where) == 1
    for where in ({"$id": evil}, {"$parent": {"$in": [evil]}}, {"a' OR 1=1 --": 1}, {"a": "' OR '1'='1"}):
        assert folder.count(where=where) == 0
    assert folder.count() == 1


def test_many_values_at_once_are_no_limit(folder: IndexFolder) -> None:
    folder.delete([document.id for document in folder.documents()])
    folder.put(
        [Document(id=f"d{n}", text="a", metadata={"n": n}) for n in range(1500)],
        np.ones((1500, 4), np.float32),
    )
    assert folder.count(where={"n": {"$in": list(range(-5000, 1400))}}) == 1400
    assert folder.count(where={"$id": {"$nin": [f"d{n}" for n in range(1400)]}}) == 100


def test_an_empty_filter_deletes_nothing(folder: IndexFolder) -> None:
    with pytest.raises(ConfigError, match="every document passes"):
        folder.delete_where({})
