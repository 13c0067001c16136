from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.commands import mine
from stm_training.data.reading import read_pairs
from stm_training.data.records import Pair, Passage
from stm_training.data.writing import write_pairs, write_passages

FRUIT = (
    "apple",
    "pear",
    "cherry",
    "fruit",
    "tree",
    "house",
    "car",
    "train",
    "river",
    "sea",
    "mountain",
    "road",
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    passages = [
        Passage(f"{first}-{second}", f"A {first} and a {second} in the water.")
        for first in FRUIT
        for second in FRUIT
        if first < second
    ]
    write_passages(tmp_path / "docs.jsonl", passages)
    first = {name: next(p for p in passages if name in p.id.split("-")) for name in FRUIT}
    pairs = [Pair(f"what does a {name} do", first[name].text, positive_id=first[name].id) for name in FRUIT]
    pairs[0] = replace(pairs[0], negatives=("own",))
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    mine.add_parser(parser.add_subparsers())
    command = [
        "mine",
        str(folder / "pairs.jsonl"),
        "--corpus",
        str(folder / "docs.jsonl"),
        "--out",
        str(folder / "mined.jsonl"),
        *options,
    ]
    return mine.run(parser.parse_args(command))


def test_a_retriever_folder_mines_and_leaves_a_report_to_read(
    files: Path, tiny_onnx_retriever: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "--model", str(tiny_onnx_retriever), "--negatives", "2", "--preset", "ranks") == 0

    mined = read_pairs(files / "mined.jsonl")
    assert [len(pair.negatives) for pair in mined] == [3, *[2] * 11]
    report = json.loads((files / "mined.report.json").read_text("utf-8"))
    assert report["model"] == str(tiny_onnx_retriever)
    assert report["counts"]["mined"] == 24
    text = (files / "mined.report.txt").read_text("utf-8")
    assert mined[1].query in text
    assert "24 negatives mined for 12 queries" in capsys.readouterr().out


def test_bm25_needs_no_model(files: Path) -> None:
    assert (
        run(
            files,
            "--model",
            "bm25",
            "--preset",
            "ranks",
            "--skip-top",
            "2",
            "--report",
            str(files / "r" / "report.json"),
        )
        == 0
    )

    assert json.loads((files / "r" / "report.json").read_text("utf-8"))["miner"] == "bm25"
    assert (files / "r" / "report.txt").is_file()
    assert all(pair.negatives for pair in read_pairs(files / "mined.jsonl"))


def test_options_reach_the_rules(files: Path, tiny_onnx_retriever: Path) -> None:
    rules = ("--skip-top", "3", "--max-rank", "all", "--band", "-1", "0.95", "--absolute-margin", "0.01")
    run(files, "--model", str(tiny_onnx_retriever), "--with-bm25", "--mix", "replace", "--pool", "7", *rules)

    report = json.loads((files / "mined.report.json").read_text("utf-8"))
    expected = {
        "miner": "both",
        "skip_top": 3,
        "max_rank": None,
        "band": [-1.0, 0.95],
        "band_quantiles": None,
        "absolute_margin": 0.01,
        "mix": "replace",
        "pool": 7,
    }
    assert {name: report["settings"][name] for name in expected} == expected
    assert report["counts"]["own_dropped"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "bm25", "--with-bm25"), "is bm25 already"),
        (("--model", "bm25", "--preset", "refine"), "no fixed scale"),
        (("--model", "bm25", "--negatives", "0"), "num_negatives: .*greater than or equal to 1"),
        (("--model", "bm25", "--max-rank", "few"), "max_rank: .*integer"),
        (("--model", "bm25", "--max-rank", "5"), "num_negatives is 1, but ranks 6 to 5 hold 0 candidates"),
    ],
)
def test_options_that_cannot_be_are_named(files: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(files, *options)


def test_nothing_is_written_where_nothing_can_be_mined(files: Path, tiny_onnx_retriever: Path) -> None:
    with pytest.raises(DataError, match="taken for a mistake"):
        run(files, "--model", str(tiny_onnx_retriever), "--band", "-0.99", "-0.9")

    assert not (files / "mined.jsonl").exists()


def test_the_pairs_are_not_written_over_themselves(files: Path) -> None:
    with pytest.raises(ConfigError, match="name another file"):
        run(files, "--model", "bm25", "--out", str(files / "pairs.jsonl"))
