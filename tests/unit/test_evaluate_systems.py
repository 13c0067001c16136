from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stm_retriever.errors import ConfigError, DataError, ModelFolderError
from stm_training.commands import evaluate as command
from stm_training.data.records import Collection, Passage
from stm_training.evaluate import systems

WORDS = ("asthma", "gout", "flu", "cough")


class WordCounter:
    """Encodes a text as which of four words it holds; remembers the role that it was asked in."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {"query": [], "document": []}

    def encode_query(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        self.asked["query"].extend(texts)
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        self.asked["document"].extend(texts)
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[word in text.lower() for word in WORDS] for text in texts], dtype=np.float32)
        return np.asarray(counts / np.maximum(1e-9, np.linalg.norm(counts, axis=1, keepdims=True)))


@pytest.fixture
def collection() -> Collection:
    passages = [
        Passage("d1", "Inhalers help.", title="Asthma"),
        Passage("d2", "Colchicine helps.", title="Gout"),
        Passage("d3", "A vaccine against flu with cough."),
    ]
    return Collection(
        "tiny",
        {passage.id: passage for passage in passages},
        {"q1": "what helps against gout", "q2": "flu", "unjudged": "asthma"},
        {"q1": {"d2": 1}, "q2": {"d3": 1}},
    )


@pytest.fixture
def folder(tmp_path: Path, collection: Collection) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": p.id, "title": p.title, "text": p.text} for p in collection.corpus.values()]
    queries = [{"_id": name, "text": text} for name, text in collection.queries.items()]
    for file, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judged = [
        f"{query}\t{doc}\t{grade}" for query, docs in collection.qrels.items() for doc, grade in docs.items()
    ]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


def evaluate(*arguments: str) -> int:
    """Run the command as ``stm-train evaluate`` would."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["evaluate", *arguments]))


def test_judged_queries_and_whole_documents_are_encoded_each_in_their_role(collection: Collection) -> None:
    encoder = WordCounter()

    run = systems.run_encoder(encoder, collection)

    assert encoder.asked["query"] == ["what helps against gout", "flu"]
    assert encoder.asked["document"][0] == "Asthma Inhalers help."
    assert {query: results[0][0] for query, results in run.items()} == {"q1": "d2", "q2": "d3"}


def test_bm25_ranks_title_and_text(collection: Collection) -> None:
    run = systems.run_bm25(collection)

    assert run["q1"][0][0] == "d2"
    assert list(run) == ["q1", "q2"]


def test_a_collection_that_cannot_be_scored_is_refused(collection: Collection) -> None:
    with pytest.raises(DataError, match="no query of this split has judgements"):
        systems.judged_queries(Collection("tiny", collection.corpus, collection.queries, {}))
    with pytest.raises(DataError, match="1 judged queries have no text, the first is 'q9'"):
        systems.judged_queries(Collection("tiny", collection.corpus, collection.queries, {"q9": {"d1": 1}}))


def test_a_model_that_is_not_there_is_an_error_of_ours(collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError):
        systems.run_model(str(tmp_path / "missing"), collection)


def test_the_command_prints_a_table_and_writes_the_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "load_encoder", lambda model, options: (WordCounter(), {"kind": "counter"}))
    file = tmp_path / "out" / "figures.json"

    status = evaluate("counter", "bm25", "--data", str(folder), "--json", str(file))

    assert status == 0
    printed = capsys.readouterr().out
    assert "2 queries, 3 documents" in printed
    assert any(line.startswith("counter (reference)") for line in printed.splitlines())
    assert "1.0000" in next(line for line in printed.splitlines() if line.startswith("bm25"))
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["systems"]["counter"] == {"ndcg@10": 1.0, "recall@10": 1.0, "delta": None, "ci95": None}
    assert figures["systems"]["bm25"]["ci95"] == [0.0, 0.0]
    assert figures["reference"] == "counter"
    assert figures["versions"]["stm-retriever"]


def test_the_command_scores_bm25_without_any_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("bm25", "--data", str(folder)) == 0
    assert "bm25" in capsys.readouterr().out


def test_a_model_given_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="bm25 is given more than once"):
        evaluate("bm25", "bm25", "--data", str(folder))


def test_queries_that_are_documents_themselves_are_pointed_out_and_left_out_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "d3", "text": "A vaccine against flu with cough."}) + "\n")
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("d3\td1\t1\n")

    evaluate("bm25", "--data", str(folder))
    assert "note: 1 queries are documents of this corpus" in capsys.readouterr().err
    evaluate("bm25", "--data", str(folder), "--exclude-self")
    assert "note:" not in capsys.readouterr().err


def test_skipped_rows_are_listed_with_the_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("q1\tunknown-document\t1\n")

    with pytest.raises(DataError, match=r"test.tsv:4"):
        evaluate("bm25", "--data", str(folder))
    assert evaluate("bm25", "--data", str(folder), "--on-error", "skip") == 0
    assert "test.tsv:4: " in capsys.readouterr().out


def test_the_command_can_be_described_without_loading_anything_heavy() -> None:
    code = (
        "import sys, stm_training.commands.evaluate, stm_training.report.html, stm_training.report.table;"
        "heavy = {'torch', 'transformers', 'bm25s', 'jinja2', 'rich', 'onnxruntime'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )

    assert found.stdout.strip() == "[]"
