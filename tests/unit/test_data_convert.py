"""``stm-train convert``: any layout into any other, found out by looking."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.commands import convert
from stm_training.data.aiano import read_aiano
from stm_training.data.conversion import collection_pairs, pairs_collection
from stm_training.data.reading import read_beir, read_pairs, write_beir, write_pairs
from stm_training.data.records import Collection, Pair, Passage
from stm_training.data.triplets import read_triplets

PAIRS = [
    Pair("What helps against mites?", "Wash hot.", ("Pollen flies.",), "q1", "mites", "llm", "question"),
    Pair("What else helps?", "Air the room.", ("Gout hurts.",), "q2", "air", "llm", "question"),
]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    convert.add_parser(parser.add_subparsers())
    return convert.run(parser.parse_args(["convert", *map(str, words)]))


def texts(pairs: list[Pair]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(pair.query, pair.positive, pair.negatives) for pair in pairs}


STEPS = {"aiano": "aiano", "beir": "beir", "triplets": "t.parquet", "pairs": "p.jsonl"}


@pytest.mark.parametrize("first", STEPS)
@pytest.mark.parametrize("second", STEPS)
def test_every_way_round_keeps_queries_positives_and_negatives(
    tmp_path: Path, pairs_file: Path, first: str, second: str
) -> None:
    run(pairs_file, "--to", first, "--out", tmp_path / "1" / STEPS[first])
    run(tmp_path / "1" / STEPS[first], "--to", second, "--out", tmp_path / "2" / STEPS[second])
    run(tmp_path / "2" / STEPS[second], "--to", "pairs", "--out", tmp_path / "back.jsonl")
    assert texts(read_pairs(tmp_path / "back.jsonl")) == texts(PAIRS)


def test_pairs_stay_whole_where_no_other_layout_is_passed(tmp_path: Path, pairs_file: Path) -> None:
    run(pairs_file, "--to", "pairs", "--out", tmp_path / "copy.jsonl")
    assert read_pairs(tmp_path / "copy.jsonl") == PAIRS


def test_what_was_done_is_said(tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(pairs_file, "--to", "aiano", "--out", tmp_path / "review", "--for-upload")
    assert "4 documents, 2 questions, 4 spans" in capsys.readouterr().out
    documents = json.loads((tmp_path / "review" / "documents.json").read_text())
    assert {row["Document_Id"] for row in documents} >= {"mites", "air"}
    assert texts(read_aiano(tmp_path / "review").pairs()) == texts(PAIRS)


def test_texts_find_their_documents_in_a_corpus(tmp_path: Path, pairs_file: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "mites", "title": "Mites", "text": "Wash hot. Or freeze."}\n{"_id": "fly", "text": "Pollen flies."}\n'
    )
    run(
        pairs_file,
        "--to",
        "beir",
        "--out",
        tmp_path / "out",
        "--documents",
        tmp_path / "corpus.jsonl",
        "--out-split",
        "dev",
    )
    collection = read_beir(tmp_path / "out", "dev")
    assert list(collection.corpus)[:2] == ["mites", "fly"]
    assert collection.corpus["mites"].text == "Wash hot. Or freeze."
    assert collection.qrels["q1"]["fly"] == 0
    assert collection.corpus["air"].text == "Air the room."
    cut = next(name for name, grade in collection.qrels["q1"].items() if grade == 1)
    assert collection.corpus[cut].text == "Wash hot.", "a text that is not the document's keeps its own words"


def test_the_split_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    collection = Collection("c", {"d": Passage("d", "Text.")}, {"q": "Q?"}, {"q": {"d": 1}})
    for split in ("train", "test"):
        write_beir(tmp_path / "c", collection, split)
    with pytest.raises(ConfigError, match="test, train"):
        run(tmp_path / "c", "--to", "pairs", "--out", tmp_path / "p.jsonl")
    assert run(tmp_path / "c", "--split", "test", "--to", "pairs", "--out", tmp_path / "p.jsonl") == 0


def test_nothing_is_replaced_unasked(tmp_path: Path, pairs_file: Path) -> None:
    with pytest.raises(ConfigError, match="--force"):
        run(pairs_file, "--to", "pairs", "--out", pairs_file)
    before = pairs_file.read_bytes()
    run(pairs_file, "--to", "pairs", "--out", pairs_file, "--force")
    assert pairs_file.read_bytes() == before


def test_levels_can_be_graded_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    span = {"document_id": "d", "text": "Text", "span": {"start": 0, "end": 4}, "level": "Key=Point"}
    file.write_text(
        json.dumps(
            {
                "annotations": [{"question": "Q?", "passages": [span]}],
                "documents": [{"document_id": "d", "text": "Text."}],
            }
        )
    )
    with pytest.raises(DataError, match="--level"):
        run(file, "--to", "pairs", "--out", tmp_path / "p.jsonl")
    run(file, "--to", "beir", "--out", tmp_path / "b", "--level", "Key=Point=2")
    assert read_beir(tmp_path / "b", "train").qrels == {"q1": {"d": 2}}
    for wrong in ("Key", "=2", "Key=x", "Key=-1"):
        with pytest.raises(ConfigError, match="NAME=GRADE"):
            run(file, "--to", "pairs", "--out", tmp_path / "p.jsonl", "--level", wrong)


def test_bad_rows_are_listed_where_they_may_be_skipped(
    tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pairs_file.open("a") as handle:
        handle.write('{"query": "", "positive": "p"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:3"):
        run(pairs_file, "--to", "triplets", "--out", tmp_path / "t.jsonl")
    run(pairs_file, "--to", "triplets", "--out", tmp_path / "t.jsonl", "--on-error", "skip")
    assert "pairs.jsonl:3: 'query' is empty" in capsys.readouterr().out
    assert texts(read_triplets(tmp_path / "t.jsonl")) == texts(PAIRS)


@pytest.mark.parametrize(
    ("name", "content", "layout"),
    [
        ("a.jsonl", '{"query": "q", "positive": "p"}', "pairs"),
        ("a.jsonl", '{"query": "q", "positive": "p", "negatives": []}', "pairs"),
        ("a.jsonl", '{"query": "q", "positive": "p", "negative": "n"}', "triplets"),
        ("a.jsonl", '{"question": "q", "answer": "p"}', "triplets"),
        ("a.json", "{}", "aiano"),
    ],
)
def test_layouts_are_told_apart(tmp_path: Path, name: str, content: str, layout: str) -> None:
    (tmp_path / name).write_text(content)
    assert convert.detect_layout(tmp_path / name) == layout


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "a.csv").write_text("x")
    for path in (tmp_path, tmp_path / "a.jsonl", tmp_path / "a.csv"):
        with pytest.raises(ConfigError, match="--from"):
            convert.detect_layout(path)
    with pytest.raises(DataError, match="is not there"):
        convert.detect_layout(tmp_path / "nowhere")


def test_the_help_is_for_newcomers_and_loads_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from stm_training.commands import convert; p = argparse.ArgumentParser();"
        "convert.add_parser(p.add_subparsers()); print(not {'torch', 'pyarrow', 'transformers'} & set(sys.modules));"
        "p.parse_args(['convert', '--help'])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("True")
    for word in ("annotations.json", "examples:", "--for-upload", "distracting=0"):
        assert word in output


def test_queries_and_texts_without_ids_get_some_and_clashes_are_resolved() -> None:
    pairs = [
        Pair("A?", "One.", ("Zero.",)),
        Pair("A?", "Two."),
        Pair("B?", "One.", query_id="q1"),
        Pair("C?", "Rest of it.", positive_id="d"),
        Pair("D?", "It without a sentence.", ("One.",), positive_id="d"),
    ]
    collection = pairs_collection("c", pairs)
    assert texts(collection_pairs(collection)) == {
        ("A?", "One.", ("Zero.",)),
        ("A?", "Two.", ("Zero.",)),
        ("B?", "One.", ()),
        ("C?", "Rest of it.", ()),
        ("D?", "It without a sentence.", ("One.",)),
    }
    assert list(collection.queries.values()) == ["A?", "B?", "C?", "D?"]
    assert len({p.text for p in collection.corpus.values()}) == len(collection.corpus) == 5
