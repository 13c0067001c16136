"""``stm-train synthesize`` in this process: its options, its files, and what it keeps to itself."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import ConfigError
from stm_training.commands import synthesize as command
from stm_training.data.reading import read_pairs
from stm_training.data.records import Collection
from stm_training.data.writing import write_beir, write_passages
from stm_training.llm.markers import marked_document, marked_task
from tests.integration.test_synthesis_server import SECRET, Reply, Server, chat, good, passages


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return parser.parse_args(["synthesize", *arguments])


def run(*arguments: str) -> int:
    return command.run(parsed(*arguments))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_passages(tmp_path / "corpus.jsonl", passages(6))
    return tmp_path / "corpus.jsonl"


def answer(server: Server, body: dict[str, Any], times: int) -> Reply:
    prompt = body["messages"][0]["content"]
    task = marked_task(prompt)
    if task == "query/long":
        n = (marked_document(prompt) or "").split()[1]
        long = (
            f"My uncle has ailment {n} since last spring, and nothing that we tried at home has helped him."
        )
        return chat(json.dumps({"queries": [long]}))
    if task == "tasks/list":
        return chat(json.dumps({"tasks": ["Given a symptom, retrieve remedies."]}))
    if task == "tasks/pair":
        pair = {"query": f"what helps {body.get('seed')}", "positive": "Rest and water help. " * 5}
        return chat(json.dumps({**pair, "hard_negative": "Weather was fine on the coast today. " * 5}))
    return chat(good(prompt))


def test_every_kind_persona_difficulty_and_invented_task_reaches_the_server_and_the_output(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("my knee hurts\n")
    (tmp_path / "personas.txt").write_text("a nurse on a night shift\n")
    out = tmp_path / "pairs.jsonl"
    with Server(answer) as server:
        status = run(
            *(str(corpus), "--out", str(out), "--base-url", server.url, "--model", "tiny"),
            *("--kinds", "question,claim,title,keywords,long,few_shot", "--sample-queries"),
            *(str(tmp_path / "mine.txt"), "--personas", str(tmp_path / "personas.txt")),
            *("--difficulty", "hard", "--domain", "hay fever", "--tasks", "1", "--pairs-per-task", "2"),
            *("--price-input", "1", "--price-output", "2", "--max-cost", "5", "--temperature", "0.2"),
        )
        prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert status == 0
    assert all(body["temperature"] == 0.2 for body in server.bodies)
    kinds = {pair.kind for pair in read_pairs(out)}
    assert kinds == {"question", "claim", "title", "keywords", "long", "few_shot", "task"}
    queries = [prompt for prompt in prompts if "\nTask: query/" in f"\n{prompt}"]
    assert len(queries) == 36
    assert all("a nurse on a night shift" in prompt and "Difficulty hard" in prompt for prompt in queries)
    assert sum("- my knee hurts" in prompt for prompt in prompts) == 6
    assert sum("hay fever" in prompt for prompt in prompts) == 1 + 2  # the list of tasks, then pairs
    told = capsys.readouterr()
    assert "Estimate: 6 documents go to 127.0.0.1 (tiny)" in told.err
    assert "cost so far" in told.out
    assert "6 documents done" not in told.out  # invented pairs are accounted for too
    assert "8 documents done, 0 failed" in told.out


def test_run_again_it_asks_nothing_and_writes_the_same(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    with Server(answer) as server:
        options = (str(corpus), "--out", str(out), "--base-url", server.url, "--model", "tiny")
        run(*options)
        first, count = out.read_bytes(), len(server.bodies)
        run(*options)
        assert (out.read_bytes(), len(server.bodies)) == (first, count)
        run(*options, "--seed", "1")
        assert len(server.bodies) == 2 * count


def test_a_dry_run_tells_the_estimate_and_leaves_nothing_behind(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = sorted(tmp_path.iterdir())
    url = ("--base-url", "https://llm.example.org/v1", "--model", "big")
    prices = ("--price-input", "1", "--price-output", "2")
    assert run(str(corpus), *url, *prices, "--dry-run", "--out", str(tmp_path / "p.jsonl")) == 0
    told = capsys.readouterr().out
    assert "6 documents go to llm.example.org (big)" in told
    assert "together" in told
    assert "cost" in told
    assert sorted(tmp_path.iterdir()) == before


def test_documents_leave_this_machine_only_with_leave(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text of 6 documents .*--allow-remote"):
        run(
            *(str(corpus), "--out", str(tmp_path / "p.jsonl")),
            *("--base-url", "https://llm.example.org/v1", "--model", "big"),
        )


def test_templates_are_written_changed_and_used(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    assert run("--write-templates", str(folder)) == 0
    file = folder / "query_question.txt"
    file.write_text(file.read_text().replace("You help", "Kindly help"))
    with Server(answer) as server:
        source = ("--base-url", server.url, "--model", "tiny", "--templates", str(folder))
        run(str(corpus), "--out", str(tmp_path / "p.jsonl"), *source, "--kinds", "question")
        assert len(server.bodies) == 6
        assert all("Kindly help" in body["messages"][0]["content"] for body in server.bodies)
        file.write_text(file.read_text().replace("{count}", "two"))
        with pytest.raises(ConfigError, match=r"lacks \{count\}"):
            run(str(corpus), "--out", str(tmp_path / "p.jsonl"), *source)
        assert len(server.bodies) == 6


def test_without_a_model_pairs_are_extracted_and_held_out_queries_are_not_among_them(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "dev.txt").write_text("title 3\n")
    out = tmp_path / "pairs.jsonl"
    options = (str(corpus), "--out", str(out), "--extractive", "--kinds", "title")
    assert run(*options, "--held-out", str(tmp_path / "dev.txt")) == 0
    assert sorted(pair.query for pair in read_pairs(out)) == [f"Title {n}" for n in (0, 1, 2, 4, 5)]
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert report["documents"]["d3"] == {"status": "done", "pairs": 0, "dropped": ["held_out"]}
    assert run(*options, "--max-documents", "2") == 0
    assert len(list(read_pairs(out))) == 2


def test_long_documents_are_cut_into_passages_and_beir_folders_are_not(tmp_path: Path) -> None:
    from stm_training.data.records import Passage

    long = Passage("d", " ".join(f"Sentence number {n} speaks of gout." for n in range(120)))
    write_beir(tmp_path / "beir", Collection("c", {"d": long}, {}, {}), "test")
    write_passages(tmp_path / "plain.jsonl", [long])
    out = tmp_path / "p.jsonl"
    for source, options, cut in (
        ("plain.jsonl", (), True),
        ("plain.jsonl", ("--split", "never"), False),
        ("beir", (), False),
        ("beir", ("--split", "always", "--max-words", "100"), True),
    ):
        run(str(tmp_path / source), "--out", str(out), "--extractive", "--kinds", "keywords", *options)
        report = json.loads((tmp_path / "p.report.json").read_text())
        assert (len(report["documents"]) > 1) == cut


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "exactly one of --base-url"),
        (("--extractive", "--replay", "x"), "found --replay, --extractive"),
        (("--base-url", "http://127.0.0.1:9/v1"), "needs --model"),
        (("--extractive", "--kinds", "riddle"), "kinds: Input should be"),
        (("--extractive", "--domain", "x"), "llm is needed"),
        (("--extractive", "--tasks", "3"), "--domain"),
        (("--replay", "x", "--kinds", "few_shot"), "sample_queries"),
        (("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--max-cost", "1"), "needs prices"),
        (("--llm", "none.yaml"), "cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(
    options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        run("no-such-corpus", "--out", str(tmp_path / "p.jsonl"), *options)


def test_nothing_to_write_for_or_nowhere_to_write_is_told(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="Name the documents"):
        run("--extractive", "--out", "p.jsonl")
    with pytest.raises(ConfigError, match="--out"):
        run(str(corpus), "--extractive")


def test_a_whole_synthesis_opens_no_connection_but_to_this_machine(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address[0])
        real_connect(self, address)

    def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        reached.append(host)
        return real_lookup(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://203.0.113.7:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://203.0.113.7:3128")
    with Server(answer) as server:
        source = ("--base-url", server.url, "--model", "tiny")
        assert run(str(corpus), "--out", str(tmp_path / "p.jsonl"), *source, "--hard-negatives") == 0
        assert len(server.bodies) == 24
    assert reached
    assert {str(host) for host in reached} <= {"127.0.0.1", "::1", "localhost"}


def test_telemetry_is_off_before_any_dependency_can_read_its_switch(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from stm_training.commands import synthesize\n"
        "import argparse\n"
        "parser = argparse.ArgumentParser()\n"
        "synthesize.add_parser(parser.add_subparsers())\n"
        f"arguments = ['synthesize', {str(corpus)!r}, '--out', {str(tmp_path / 'p.jsonl')!r}, '--extractive']\n"
        "synthesize.run(parser.parse_args(arguments))\n"
        "import os, huggingface_hub.constants as constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY is True\n"
        "assert os.environ['DO_NOT_TRACK'] == '1'\n"
    )
    silent = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_telemetry_is_off_where_the_hub_client_was_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    from stm_training.llm.telemetry import telemetry_off

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    telemetry_off()
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


def test_no_text_reaches_the_log_or_the_screen(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(answer) as server:
        source = ("--base-url", server.url, "--model", "tiny")
        run(str(corpus), "--out", str(tmp_path / "p.jsonl"), *source)
    told = capsys.readouterr()
    assert SECRET not in caplog.text + told.out + told.err
    assert (tmp_path / "p.journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, argparse\n"
        "from stm_training.commands import synthesize\n"
        "parser = argparse.ArgumentParser()\n"
        "synthesize.add_parser(parser.add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'openai', 'llguidance', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
