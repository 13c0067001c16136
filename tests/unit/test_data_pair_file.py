"""Pairs on disk: the same rows as reading the file whole, by threads and forked processes too."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stm_retriever.errors import DataError
from stm_training.data.pair_file import PairFile
from stm_training.data.reading import read_pairs, write_pairs
from stm_training.data.records import Pair, SkippedRow

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: text.strip() != "")
PAIRS = st.builds(
    Pair,
    query=TEXTS,
    positive=TEXTS,
    negatives=st.lists(TEXTS, max_size=2).map(tuple),
    positive_id=st.none() | st.just("d1"),
    source=st.sampled_from(["", "labelled"]),
)


def numbered(path: Path, count: int) -> Path:
    write_pairs(path, (Pair(f"query {n} " + "é" * (n % 50), f"text {n}") for n in range(count)))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(pairs=st.lists(PAIRS, max_size=12))
def test_the_rows_are_those_of_reading_the_whole_file(pairs: list[Pair], tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    with PairFile(tmp_path / "pairs.jsonl") as file:
        assert len(file) == len(pairs)
        assert list(file) == [file[row] for row in range(len(file))] == pairs
        assert file[1:-1] == pairs[1:-1]
        assert pairs == [] or file[-1] == pairs[-1]
        file.check()


def test_blank_lines_a_bom_and_windows_line_ends_are_no_part_of_a_row(tmp_path: Path) -> None:
    rows = [json.dumps({"query": f"q{n}", "positive": f"d{n}"}).encode() for n in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + rows[0] + b"\r\n\r\n  \n" + rows[1] + b"\n\n" + rows[2])
    assert list(PairFile(path)) == read_pairs(path) == [Pair(f"q{n}", f"d{n}") for n in range(3)]


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (b'{"query": "q", "positiv": "d"}', "unknown keys 'positiv'"),
        (b'{"query": "q", "positive": " "}', "'positive' is empty"),
        (b'{"query": "q", "positive": "d"', "broken JSON"),
        (b'["q", "d"]', "a JSON object is expected, found list"),
        (b'{"query": "q\xff", "positive": "d"}', "byte 0xff"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_when_it_is_read(tmp_path: Path, bad: bytes, cause: str) -> None:
    good = b'{"query": "q", "positive": "d"}'
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([good, b"", bad, good, b""]))
    file = PairFile(path)
    assert file[0] == file[2] == Pair("q", "d")
    for read in (lambda: file[1], file.check, lambda: list(file)):
        with pytest.raises(DataError, match=f"pairs.jsonl:3: {cause}"):
            read()
    skipped: list[SkippedRow] = []
    assert list(PairFile(path, "skip", skipped=skipped)) == [Pair("q", "d")] * 2
    assert [row.line for row in skipped] == [3]
    assert cause in skipped[0].cause


def test_a_missing_file_and_a_row_that_is_not_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read \(No such file"):
        PairFile(tmp_path / "none.jsonl")
    file = PairFile(numbered(tmp_path / "pairs.jsonl", 2))
    for row in (2, -3):
        with pytest.raises(IndexError, match=f"row {row} of .*2 rows"):
            file[row]


def test_a_file_that_changed_meanwhile_is_an_error_and_not_other_rows(tmp_path: Path) -> None:
    file = PairFile(numbered(tmp_path / "pairs.jsonl", 5))
    assert file[4].positive == "text 4"
    numbered(tmp_path / "pairs.jsonl", 4)
    assert file[4].positive == "text 4"  # the file that was opened is still there
    file.close()
    for read in (lambda: file[3], lambda: list(file)):
        with pytest.raises(DataError, match="was changed since it was opened"):
            read()


def test_threads_get_the_rows_they_ask_for(tmp_path: Path) -> None:
    file = PairFile(numbered(tmp_path / "pairs.jsonl", 300))
    wrong: list[int] = []

    def read(step: int) -> None:
        for turn in range(1500):
            row = turn * step % 300
            if file[row].positive != f"text {row}":
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(step,)) for step in (7, 11, 13, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_read_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    file = PairFile(numbered(tmp_path / "pairs.jsonl", 300))
    assert file[5].positive == "text 5"  # the handle is open before the fork

    def read(step: int) -> None:
        rows = [turn * step % 300 for turn in range(2000)]
        os._exit(0 if all(file[row].positive == f"text {row}" for row in rows) else 1)

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=read, args=(step,)) for step in (7, 11)]
    for child in children:
        child.start()
    assert all(file[row].positive == f"text {row}" for row in range(300))
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
