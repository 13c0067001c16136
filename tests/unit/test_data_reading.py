"""Reading collections, corpora and pairs: what is accepted, and how bad rows are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.reading import (
    available_splits,
    read_beir,
    read_corpus,
    read_pairs,
    write_beir,
    write_pairs,
    write_passages,
)
from stm_training.data.records import Pair, Passage, SkippedRow


def write_rows(path: Path, rows: list[dict[str, Any] | str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
        lines.append(line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_rows(
        folder / "corpus.jsonl", [{"_id": "d1", "title": "T", "text": "one"}, {"_id": 2, "text": "two"}]
    )
    write_rows(folder / "queries.jsonl", [{"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "second?"}])
    write_rows(folder / "qrels" / "train.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q1\t2\t0"])
    write_rows(folder / "qrels" / "test.tsv", ["q2\t2\t2"])
    return folder


def test_a_split_holds_the_whole_corpus_and_only_its_own_queries(collection: Path) -> None:
    train = read_beir(collection, "train")
    assert (train.name, list(train.corpus), train.queries) == ("tiny", ["d1", "2"], {"q1": "first?"})
    assert train.qrels == {"q1": {"d1": 1, "2": 0}}
    assert train.corpus["d1"].content == "T one"
    assert available_splits(collection) == ["test", "train"]


def test_qrels_without_a_header_lose_no_row(collection: Path) -> None:
    assert read_beir(collection, "test").qrels == {"q2": {"2": 2}}


def test_a_missing_split_names_those_that_are_there(collection: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'dev'; those there: test, train"):
        read_beir(collection, "dev")


def test_a_corpus_read_once_serves_the_other_splits(collection: Path) -> None:
    train = read_beir(collection, "train")
    (collection / "corpus.jsonl").write_text("broken")
    assert read_beir(collection, "test", corpus=train.corpus).corpus is train.corpus


@pytest.mark.parametrize(
    ("file", "row", "told"),
    [
        ("corpus.jsonl", {"_id": "d1", "text": "again"}, "duplicate id 'd1'"),
        ("corpus.jsonl", {"_id": "d9", "text": " \t"}, "'text' of 'd9' is empty"),
        ("corpus.jsonl", {"_id": "d9", "title": "only", "text": ""}, "'text' of 'd9' is empty"),
        ("corpus.jsonl", {"_id": "d9"}, "'text' of 'd9' is"),
        ("corpus.jsonl", {"_id": "d9", "text": 7}, "is int, not a string: '7'"),
        ("corpus.jsonl", {"text": "no id"}, "'_id' is missing"),
        ("corpus.jsonl", {"_id": True, "text": "x"}, "not a usable id: 'true'"),
        ("corpus.jsonl", {"_id": "d9", "text": "x", "title": 3}, "'title' of 'd9' is int"),
        ("corpus.jsonl", {"_id": "d9", "text": "x", "metadata": [1]}, "'metadata' of 'd9' is not an object"),
        ("corpus.jsonl", '{"_id": "d9", "text": "lone \\ud800"}', "lone surrogate U+D800 at character 5"),
        ("corpus.jsonl", '{"_id": "d9", "text": ', "broken JSON"),
        ("corpus.jsonl", '["d9"]', "a JSON object is expected, found list"),
        ("corpus.jsonl", b'{"_id": "d9", "text": "caf\xe9"}', "byte 0xe9 at offset 26 is not UTF-8"),
        ("queries.jsonl", {"_id": "q1", "text": "again"}, "duplicate id 'q1'"),
        ("queries.jsonl", {"_id": "q9", "text": ""}, "'text' of query 'q9' is empty"),
        ("qrels/train.tsv", "q1\tnowhere\t1", "unknown document 'nowhere'"),
        ("qrels/train.tsv", "nobody\td1\t1", "unknown query 'nobody'"),
        ("qrels/train.tsv", "q1\td1\thigh", "the grade 'high' is not an integer"),
        ("qrels/train.tsv", "q1\td1\t2", "contradicting grades 1 and 2"),
        ("qrels/train.tsv", "q1 d1 1", "1 tab-separated fields, expected 3"),
    ],
)
def test_a_bad_row_is_an_error_with_file_line_value_and_remedy_or_is_skipped_and_listed(
    collection: Path, file: str, row: Any, told: str
) -> None:
    before = read_beir(collection, "train")
    path = collection / file
    line = path.read_bytes().count(b"\n") + 1
    path.write_bytes(
        path.read_bytes()
        + (row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode())
    )
    with pytest.raises(DataError) as caught:
        read_beir(collection, "train")
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert told in message
    assert "on_error: skip" in message
    after = read_beir(collection, "train", on_error="skip")
    assert (after.corpus, after.queries, after.qrels) == (before.corpus, before.queries, before.qrels)
    assert [(skipped.file, skipped.line) for skipped in after.skipped] == [(str(path), line)]
    assert told in after.skipped[0].cause


def test_every_bad_row_is_listed_when_skipping(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str | bytes] = [
        {"_id": "a", "text": "x"},
        "{",
        {"_id": "a", "text": "y"},
        {"_id": "b", "text": ""},
        {"_id": "c", "text": "z"},
    ]
    skipped: list[SkippedRow] = []
    passages = read_corpus(write_rows(tmp_path / "docs.jsonl", rows), on_error="skip", skipped=skipped)
    assert [p.id for p in passages] == ["a", "c"]
    assert [row.line for row in skipped] == [2, 3, 4]


def test_titles_without_text_are_taken_only_on_request(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "docs.jsonl", [{"_id": "a", "title": "Only a title", "text": ""}])
    with pytest.raises(DataError, match="'text' of 'a' is empty"):
        read_corpus(path)
    assert read_corpus(path, allow_title_only=True)[0].content == "Only a title"


def test_an_unknown_way_with_errors_is_refused(collection: Path) -> None:
    with pytest.raises(ConfigError, match="on_error is 'ignore'"):
        read_beir(collection, "train", on_error="ignore")  # type: ignore[arg-type]


def test_a_folder_of_text_files_becomes_passages_in_path_order_and_names_what_it_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "note.txt").write_bytes(b"\xef\xbb\xbfplain\r\ntext")
    (tmp_path / "a.md").write_text("# A title\n\nBody of it.\n")
    (tmp_path / "c.html").write_text("<title>Page</title><p>Hello</p>")
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
    (tmp_path / ".hidden.txt").write_text("no")
    skipped: list[SkippedRow] = []
    passages = read_corpus(tmp_path, skipped=skipped)
    assert [(p.id, p.title, p.text.strip()) for p in passages] == [
        ("a.md", "A title", "Body of it."),
        ("b/note.txt", "", "plain\ntext"),
        ("c.html", "Page", "Hello"),
    ]
    assert [Path(row.file).name for row in skipped] == ["scan.pdf"]
    assert "1 bad rows skipped" in caplog.text


def test_other_keys_of_a_row_are_kept_as_metadata(tmp_path: Path) -> None:
    row = {"id": "a", "text": "x", "year": 2020, "metadata": {"lang": "en"}}
    assert read_corpus(write_rows(tmp_path / "d.jsonl", [row]))[0].metadata == {"lang": "en", "year": 2020}


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(DataError, match="no document could be read"):
        read_corpus(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        read_corpus(tmp_path / "nowhere")


def test_an_invalid_byte_deep_in_a_text_file_is_found_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nfine\nb\xffd")
    with pytest.raises(DataError, match=r"a\.txt:3: byte 0xff"):
        read_corpus(tmp_path)


def test_pairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    pairs = [
        Pair(
            "q", "p", ("n1", "n2"), query_id="1", positive_id="2", source="m", kind="question", prompt="find"
        ),
        Pair("line\u2028separator", "näive\nlines"),
        Pair("q", "p", ("n1", "n2"), scores=(2.5, -1.0, 1e-17)),
        Pair("q", "p", scores=(0.1,)),
    ]
    assert write_pairs(tmp_path / "out" / "pairs.jsonl", pairs) == 4
    assert read_pairs(tmp_path / "out" / "pairs.jsonl") == pairs


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query": "q", "positive": "p", "negative": "n"}, "unknown keys 'negative'"),
        ({"query": "q"}, "'positive' is missing"),
        ({"query": " ", "positive": "p"}, "'query' is empty"),
        ({"query": "q", "positive": "p", "negatives": "n"}, "'negatives' is str, not a list"),
        ({"query": "q", "positive": "p", "negatives": ["n", ""]}, "'negatives[1]' is empty"),
        ({"query": "q", "positive": "p", "kind": 3}, "'kind' is not a string"),
        ({"query": "q", "positive": "p", "scores": 0.5}, "'scores' is float, not a list"),
        (
            {"query": "q", "positive": "p", "negatives": ["n"], "scores": [1]},
            "1 scores for 1 positive and 1 neg",
        ),
        ({"query": "q", "positive": "p", "scores": [1, 0]}, "2 scores for 1 positive and 0 negatives"),
        ({"query": "q", "positive": "p", "scores": ["1"]}, "no finite number: scores[0] is 1"),
        ({"query": "q", "positive": "p", "scores": [True]}, "no finite number: scores[0] is True"),
        ({"query": "q", "positive": "p", "scores": [10**400]}, "no finite number: scores[0] is 1000"),
        (
            {"query": "q", "positive": "p", "negatives": ["n"], "scores": [1, float("nan")]},
            "scores[1] is nan",
        ),
    ],
)
def test_a_bad_pair_is_told_with_its_line(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", [{"query": "q", "positive": "p"}, row])
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert f"{path}:2: " in str(caught.value)
    assert told in str(caught.value)
    assert len(read_pairs(path, on_error="skip")) == 1


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [Pair("old", "p")])

    def broken() -> Any:
        yield Pair("new", "p")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(path, broken())
    assert [p.query for p in read_pairs(path)] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_collections_and_pieces_come_back_as_they_were_written(collection: Path, tmp_path: Path) -> None:
    read = read_beir(collection, "train")
    write_beir(tmp_path / "copy" / "tiny", read, "train")
    assert read_beir(tmp_path / "copy" / "tiny", "train") == read
    piece = Passage("d#0", "text", "T", {"k": [1]}, parent_id="d", start=3, end=7)
    write_passages(tmp_path / "pieces.jsonl", [piece])
    assert read_corpus(tmp_path / "pieces.jsonl") == [piece]
