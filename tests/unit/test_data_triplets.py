"""sentence-transformers' triplets, as JSONL and Parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import ConfigError, DataError, MissingExtraError
from stm_training.data.records import Pair, SkippedRow
from stm_training.data.triplets import read_triplets, write_triplets

PAIRS = [
    Pair("What helps?", "Washing.", ("Pollen.", "Gout.\nNight."), "q1", "d1", "llm", "question"),
    Pair("ダニ?", "布団を洗う。", ("鉄", "心臓", "余分")),
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture(params=["t.jsonl", "t.parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def texts(pairs: list[Pair]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(pair.query, pair.positive, pair.negatives) for pair in pairs]


def test_negatives_become_numbered_columns_and_come_back(file: Path) -> None:
    assert write_triplets(file, PAIRS, negatives=2) == 2
    assert rows_of(file) == [
        {
            "anchor": "What helps?",
            "positive": "Washing.",
            "negative_1": "Pollen.",
            "negative_2": "Gout.\nNight.",
        },
        {"anchor": "ダニ?", "positive": "布団を洗う。", "negative_1": "鉄", "negative_2": "心臓"},
    ]
    assert texts(read_triplets(file)) == [
        ("What helps?", "Washing.", ("Pollen.", "Gout.\nNight.")),
        ("ダニ?", "布団を洗う。", ("鉄", "心臓")),
    ]


def test_one_negative_is_a_triplet_and_none_a_pair(file: Path) -> None:
    write_triplets(file, PAIRS, negatives=1)
    assert [list(row) for row in rows_of(file)] == [["anchor", "positive", "negative"]] * 2
    write_triplets(file, PAIRS, negatives=0)
    assert [list(row) for row in rows_of(file)] == [["anchor", "positive"]] * 2


def test_one_negative_per_row_keeps_all_of_them(file: Path) -> None:
    assert write_triplets(file, PAIRS, one_per_row=True) == 5
    assert texts(read_triplets(file)) == texts(PAIRS)


def test_rows_with_fewer_negatives_are_left_out(file: Path) -> None:
    assert write_triplets(file, PAIRS, negatives=3) == 1
    with pytest.raises(DataError, match="No row is left"):
        write_triplets(file, PAIRS, negatives=4)
    assert len(rows_of(file)) == 1, "the file that was there is kept"


def test_differing_numbers_of_negatives_must_be_decided_by_the_caller(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 pairs with 2, 1 pairs with 3.*--negatives N"):
        write_triplets(file, PAIRS)
    assert not file.exists()
    assert write_triplets(file, PAIRS[:1]) == 1, "a common number needs no decision"


@pytest.mark.parametrize("names", [("query", "answer"), ("question", "positive"), ("anchor", "answer")])
def test_common_other_names_are_understood(file: Path, names: tuple[str, str]) -> None:
    write_rows(
        file, [{names[0]: "Q?", names[1]: "A.", "negative_10": "ten", "negative_2": "two", "negative": None}]
    )
    assert texts(read_triplets(file)) == [("Q?", "A.", ("two", "ten"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "a", "positive": " "}, "'positive' is empty"),
        ({"anchor": None, "positive": "p"}, "'anchor' is missing"),
        ({"anchor": "a"}, "one column 'positive' is needed"),
        ({"positive": "p"}, "one column 'anchor' is needed"),
        ({"anchor": "a", "query": "b", "positive": "p"}, "'anchor' and 'query'"),
        ({"anchor": "a", "positive": "p", "score": "1"}, "unknown columns 'score'"),
        ({"anchor": "a", "positive": "p", "negative": ""}, "'negative' is empty"),
        ({"anchor": "a", "positive": "p", "negative": 3}, "'negative' is int"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = {"anchor": "a", "positive": "p", "negative": "n"}
    file = write_rows(tmp_path / "t.jsonl", [good, row])
    with pytest.raises(DataError) as caught:
        read_triplets(file)
    assert "t.jsonl:2: " in str(caught.value)
    assert message in str(caught.value)
    skipped: list[SkippedRow] = []
    assert texts(read_triplets(file, "skip", skipped=skipped)) == [("a", "p", ("n",))]
    assert [entry.line for entry in skipped] == [2]


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "t.parquet", [{"anchor": "a", "positive": "p"}, {"anchor": "", "positive": "p"}]
    )
    with pytest.raises(DataError, match=r"t\.parquet:2: 'anchor' is empty"):
        read_triplets(file)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"PAR1 not really")
    for path in (junk, tmp_path / "nowhere.parquet", tmp_path / "nowhere.jsonl"):
        with pytest.raises(DataError, match=path.name):
            read_triplets(path)


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    for path, more in (
        (tmp_path / "t.csv", {"negatives": 0}),
        (tmp_path / "t.jsonl", {"negatives": -1}),
        (tmp_path / "t.jsonl", {"negatives": 1, "one_per_row": True}),
    ):
        with pytest.raises(ConfigError):
            write_triplets(path, PAIRS, **more)  # type: ignore[arg-type]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"stm-retriever\[train\]"):
        write_triplets(tmp_path / "t.parquet", PAIRS, negatives=0)
    assert list(tmp_path.iterdir()) == []
    assert write_triplets(tmp_path / "t.jsonl", PAIRS, negatives=0) == 2


def test_many_rows_pass_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm_training.data.triplets._ROWS_AT_ONCE", 7)
    pairs = [Pair(f"q{n}", f"p{n}", (f"n{n}",)) for n in range(50)]
    assert write_triplets(tmp_path / "t.parquet", pairs) == 50
    assert texts(read_triplets(tmp_path / "t.parquet")) == texts(pairs)
