"""``stm-train leakage``: files in, a table, JSON and an exit status out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.commands import leakage
from tests.tiny_run import write_tiny_collection


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    leakage.add_parser(parser.add_subparsers())
    return leakage.run(parser.parse_args(["leakage", *map(str, arguments)]))


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write_tiny_collection(tmp_path / "health", ("asthma", "gout"), splits={"train": 0, "test": 1})
    return tmp_path / "health"


def write_pairs(path: Path, *queries: str) -> Path:
    rows = [{"query": query, "positive": "An answer that is in no corpus."} for query in queries]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_leak_is_shown_and_exits_with_1(
    tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", "Will my ASTHMA go away with time?", "is chess a sport")
    assert run(pairs, "--test", collection, "--json", tmp_path / "out" / "leaks.json") == 1
    printed = capsys.readouterr()
    assert "will my asthma go away with time" in printed.out
    assert "Will my ASTHMA go away with time?" in printed.out
    assert "health/test" in printed.err
    figures = json.loads((tmp_path / "out" / "leaks.json").read_text("utf-8"))
    counts = {
        (row["train_role"], row["test_role"]): (row["exact"], row["normalised"])
        for row in figures["overlaps"]
    }
    assert counts[("query", "query")] == (0, 1)
    assert counts[("document", "document")] == (0, 0)


def test_without_a_leak_or_with_one_allowed_by_name_it_exits_with_0(
    tmp_path: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = write_pairs(tmp_path / "clean.jsonl", "is chess a sport")
    leaking = write_pairs(tmp_path / "leaking.jsonl", "will my gout go away with time")
    assert run(clean, "--test", collection) == 0
    assert run(clean, leaking, "--test", collection, "--allow", "health/test") == 0
    assert "LEAK" not in capsys.readouterr().err
    assert run(clean, leaking, "--test", collection, "--queries-only") == 1


def test_a_collection_as_training_shares_its_documents_which_is_no_leak(
    collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(collection, "--test", collection) == 0
    (row,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("health/train documents")
    ][1:]
    assert row.split()[-4:-2] == ["8", "4"]  # of 8 documents, the 4 that answer a training query


def test_what_cannot_be_read_is_said(tmp_path: Path, collection: Path) -> None:
    with pytest.raises(DataError, match="nothing: cannot be read"):
        run(tmp_path / "nothing", "--test", tmp_path / "nowhere")
    pairs = write_pairs(tmp_path / "pairs.jsonl", "a query")
    with pytest.raises(DataError, match="no split 'dev'"):
        run(pairs, "--test", collection, "--split", "dev")
    with pytest.raises(ConfigError, match="allowed"):
        run(pairs, "--test", collection, "--allow", "health")
