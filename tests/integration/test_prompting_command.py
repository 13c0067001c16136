"""``stm-train prompts``: from a model folder and a collection to a folder that carries the better prompt."""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stm_retriever import Embedder
from stm_retriever.errors import ConfigError
from stm_retriever.folder import read_manifest
from stm_training.commands import prompts
from stm_training.export import export
from tests.prompted_model import (
    PLANTED,
    PLANTED_PROMPT,
    USELESS,
    deaf_backbone,
    obedient_model,
    problem,
    write_collection,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the export, which takes seconds, instead of the export."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(export, "export_model", lambda *_, **options: calls.append(options))
    return calls


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "wards")


class Scripted(ThreadingHTTPServer):
    """A chat server that answers in turn; after the last answer, that one again."""

    def __init__(self, *answers: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.asked: list[str] = []

    def __enter__(self) -> Scripted:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body["messages"][0]["content"])
        text = self.server.answers[min(len(self.server.asked), len(self.server.answers)) - 1]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    prompts.add_parser(parser.add_subparsers())
    return prompts.run(parser.parse_args(["prompts", "--quiet", *map(str, arguments)]))


def ndcg(folder: Path) -> float:
    """Through the shipped folder alone, as an application uses it."""
    embedder = Embedder.load(folder, threads=1)
    made = problem()
    documents = embedder.encode_document([passage.text for passage in made.passages])
    queries = embedder.encode_query(list(made.queries.values()))
    order = np.argsort(-queries @ documents.T, axis=1)
    names = [passage.id for passage in made.passages]
    ranks = [
        1 + [names[column] for column in row].index(next(iter(made.qrels[query])))
        for query, row in zip(made.queries, order, strict=True)
    ]
    return float(np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks]))


def test_a_list_with_the_planted_prompt_makes_a_folder_whose_consumers_apply_it(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join((*USELESS, PLANTED, "Raise the nDCG.")))
    report = tmp_path / "reports" / "prompts.json"
    out = tmp_path / "better"
    arguments = ("--data", data, "--candidates", file, "--report", report)
    assert run(obedient_model(), *arguments, "--out", out) == 0
    assert read_manifest(out).prompts.model_dump() == {"query": PLANTED_PROMPT, "document": ""}
    stored = json.loads((out / "config_sentence_transformers.json").read_text())
    assert stored["prompts"]["query"] == PLANTED_PROMPT
    assert ndcg(out) > 0.95
    figures = json.loads(report.read_text())
    by_prompt = {one["prompt"]: one for one in figures["candidates"]}
    assert figures["changed"]
    assert figures["candidates"][0]["origin"] == "plain"
    assert by_prompt[PLANTED_PROMPT]["chosen"]
    assert by_prompt[PLANTED_PROMPT]["interval"][0] > 0
    assert by_prompt["Raise the nDCG.\nQuery: "]["lint"][0]["rule"] == "metric"
    assert by_prompt["Raise the nDCG.\nQuery: "]["dev_ndcg@10"] is None
    printed = capsys.readouterr().out
    assert "Chosen: 'Find the medicine that is given.\\nQuery: '" in printed
    assert "refused  'Raise the nDCG.\\nQuery: '" in printed


def test_gepa_against_a_server_finds_it_and_a_second_run_asks_nothing(
    tmp_path: Path, data: Path, exports: list[dict[str, Any]]
) -> None:
    with Scripted(*(f"```\n{text}\n```" for text in (*USELESS, PLANTED))) as server:
        arguments: list[str | Path] = [obedient_model(), "--data", data, "--gepa"]
        arguments += ["--base-url", server.base_url]
        arguments += ("--model", "m", "--budget", "200", "--out", tmp_path / "better")
        assert run(*arguments) == 0
        asked = len(server.asked)
        assert asked >= 4
        assert run(*arguments) == 0
        assert len(server.asked) == asked
    assert [options["query_prompt"] for options in exports] == [PLANTED_PROMPT] * 2
    assert (tmp_path / "better.prompts" / "prompts.journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_model_that_hears_no_prompts_is_exported_as_it_is(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], exports: list[dict[str, Any]]
) -> None:
    model = deaf_backbone(tmp_path / "deaf").path
    assert run(model, "--data", data, "--random", "8", "--out", tmp_path / "same") == 0
    assert [options["query_prompt"] for options in exports] == [None]
    assert "Kept: ''" in capsys.readouterr().out


def test_a_prompt_that_copies_a_test_query_is_refused(tmp_path: Path, exports: list[dict[str, Any]]) -> None:
    data = write_collection(tmp_path / "wards")
    rows = (data / "queries.jsonl").read_text() + json.dumps(
        {"_id": "t", "text": "which tablets ease a cough"}
    )
    (data / "queries.jsonl").write_text(rows + "\n")
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nt\tdrug-1\t1\n")
    file = tmp_path / "prompts.txt"
    file.write_text("Such as: which tablets ease a cough?\nSearch the wards data.\n")
    report = tmp_path / "report.json"
    run(
        *(obedient_model(), "--data", data, "--candidates", file),
        *("--report", report, "--out", tmp_path / "out"),
    )
    rules = [[one["rule"] for one in row["lint"]] for row in json.loads(report.read_text())["candidates"]]
    assert rules == [[], ["test_data"], ["test_data"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--split", "test", "--random", "3"), "chosen on test queries makes their score worthless"),
        ((), "nothing to try beside the model's own prompt"),
        (("--gepa",), "--gepa needs an LLM"),
        (
            ("--gepa", "--base-url", "http://example.org/v1", "--model", "m"),
            "example.org is not this machine",
        ),
        (("--random", "3", "--template", "Query: "), "exactly once"),
        (("--random", "3", "--documents", "0"), "at least 1 document"),
        (("--random", "400"), "40 are shipped"),
    ],
)
def test_options_that_cannot_be_are_errors_that_say_what_to_do(
    tmp_path: Path, data: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(obedient_model(), "--data", data, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
