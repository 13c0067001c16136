"""Real ``stm-train synthesize`` processes, killed at random instants, stopped by Ctrl-C, and badly served."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stm_training.data.writing import write_passages
from stm_training.llm.markers import marked_document
from tests.integration.test_synthesis_server import (
    SECRET,
    Reply,
    Script,
    Server,
    chat,
    failure,
    good,
    keys,
    lines,
    passages,
    settle,
)

AT_ONCE = 3
KILLS = 10
KEY = "sk-very-secret"
# The command as the console script runs it, whether it is listed in the parser yet or not.
COMMAND = """
import sys
import stm_training.cli as cli
if "synthesize" not in cli.COMMANDS:
    cli.COMMANDS = (*cli.COMMANDS, "synthesize")
sys.exit(cli.main())
"""


def start(server: Server, folder: Path, *options: str, documents: int = 30) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    if not (folder / "corpus.jsonl").exists():
        write_passages(folder / "corpus.jsonl", passages(documents))
    arguments = [
        "synthesize",
        str(folder / "corpus.jsonl"),
        "--out",
        str(folder / "pairs.jsonl"),
        "--hard-negatives",
    ]
    arguments += ["--base-url", server.url, "--model", "tiny", "--concurrency", str(AT_ONCE), *options]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def difficult(server: Server, body: dict[str, Any], times: int) -> Reply:
    """Slow enough to be killed in the middle; one document fails, one needs a re-ask, one a retry."""
    prompt = body["messages"][0]["content"]
    time.sleep(0.01)
    if "Body 7 " in prompt:
        return failure(404, "gone")
    if "Body 9 " in prompt and len(body["messages"]) == 1:
        return chat('{"queries": ["Half')
    return chat(good(prompt))


def outputs(folder: Path) -> tuple[bytes, dict[str, Any]]:
    report = json.loads((folder / "pairs.report.json").read_text())
    for name in ("asked", "reused", "reasked", "prompt_tokens", "completion_tokens"):
        del report["counts"][name]  # of this run alone; a resumed one asks for less
    return (folder / "pairs.jsonl").read_bytes(), report


@pytest.mark.slow
def test_a_run_killed_at_ten_random_instants_ends_like_an_uninterrupted_one_and_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    instants = random.Random(20261120)
    with Server(difficult) as server:
        assert finish(start(server, tmp_path / "whole"))[0] == 0
        whole, server.asked = Counter(server.asked), Counter()
        journal = tmp_path / "killed" / "pairs.journal.jsonl"
        # Instants of the run's own time: so many answers written down, and a little later.
        targets = sorted(instants.sample(range(1, sum(whole.values()) - 10), KILLS))
        for target in targets:
            run = start(server, tmp_path / "killed")
            while run.poll() is None and lines(journal) < target:
                time.sleep(0.003)
            time.sleep(instants.random() * 0.02)
            assert run.poll() is None, "it ended before it could be killed"
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=30)
            settle(server)  # what was under way at the kill has been counted
            assert not (tmp_path / "killed" / "pairs.jsonl").exists()
        journalled, before = keys(journal), Counter(server.asked)
        assert finish(start(server, tmp_path / "killed"))[0] == 0
        killed = Counter(server.asked)
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert set(killed) == set(whole)
    assert sum(killed.values()) - sum(whole.values()) <= AT_ONCE * KILLS  # what was under way at each kill
    assert sum((killed - before).values()) == sum(whole.values()) - len(journalled)
    assert len(keys(journal)) == sum(whole.values())


def test_ctrl_c_ends_at_once_even_while_the_server_hangs_and_keeps_what_it_answered(tmp_path: Path) -> None:
    def script(server: Server, body: dict[str, Any], times: int) -> Reply:
        prompt = body["messages"][0]["content"]
        if int((marked_document(prompt) or "").split()[1]) >= 5:
            time.sleep(240)
        return chat(good(prompt))

    journal = tmp_path / "run" / "pairs.journal.jsonl"
    with Server(script) as server:
        run = start(server, tmp_path / "run", "--timeout", "300")
        while run.poll() is None and lines(journal) < 20:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        status, told = finish(run, timeout=90)  # far less than the server's four minutes
    assert status == 130
    assert "What is finished is kept" in told
    assert "Traceback" not in told
    assert len(keys(journal)) == 20


def trouble(n: int, times: int, reask: bool) -> Reply | None:
    """What goes wrong with document ``n``; ``None``: nothing any more."""
    answers: dict[int, Reply | None] = {
        0: failure(429, "slow down", retry_after="0.05") if times == 1 else None,
        1: failure(500) if times == 1 else None,
        2: (200, {}, b'{"id": "x", "cho') if times == 1 else None,
        3: None if reask else chat('{"answer": {"to": "everything"}}'),
        4: chat("I'm sorry, but I cannot help with that."),
        5: chat(""),
        6: failure(400, "the prompt is too long"),
        7: None if reask else chat('{"queries": ["Half a que'),
        8: failure(503),
        10: chat('{"queries": [7, {"no": "text"}]}'),
    }
    return answers.get(n)


def bad_night(server: Server, body: dict[str, Any], times: int) -> Reply:
    prompt = body["messages"][0]["content"]
    n = int((marked_document(prompt) or "").split()[1])
    if n == 9 and times == 1 and "Task: query/claim" in prompt:
        time.sleep(4)  # hangs for longer than the client waits
    return trouble(n, times, len(body["messages"]) > 1) or chat(good(prompt))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int]]:
    folder = tmp_path_factory.mktemp("night")
    with Server(bad_night) as server:
        (folder / "llm.yaml").write_text(
            f"base_url: {server.url}\nmodel: tiny\nmax_retries: 1\ntimeout: 3\nconcurrency: 4\n"
        )
        write_passages(folder / "corpus.jsonl", passages(14))
        arguments = [
            "synthesize",
            str(folder / "corpus.jsonl"),
            "--out",
            str(folder / "pairs.jsonl"),
            "--hard-negatives",
        ]
        run = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments, "--llm", str(folder / "llm.yaml")],
            env={**os.environ, "OPENAI_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=120,
        )
    yield folder, run.stdout + run.stderr, run.returncode


def test_after_a_bad_night_every_document_is_done_or_listed_with_its_reasons(
    night: tuple[Path, str, int],
) -> None:
    folder, told, status = night
    assert status == 0, told
    report = json.loads((folder / "pairs.report.json").read_text())
    documents = report["documents"]
    assert set(documents) == {f"d{n}" for n in range(14)}
    failed = {id_ for id_, entry in documents.items() if entry["status"] == "failed"}
    assert failed == {"d5", "d6", "d8", "d10"}
    reasons = {id_: {one["reason"] for one in documents[id_]["failures"]} for id_ in failed}
    assert reasons == {
        "d5": {"no usable answer in 3 tries: it is empty"},
        "d6": {"HTTP 400: the prompt is too long"},
        "d8": {"HTTP 503: no"},
        "d10": {"no usable answer in 3 tries: one of its queries is not a string"},
    }
    assert documents["d4"] == {"status": "done", "pairs": 0, "dropped": ["refusal"]}
    assert all(documents[id_]["pairs"] == 3 for id_ in set(documents) - failed - {"d4"})
    assert f"{14 - 4} documents done, 4 failed" in told


def test_no_text_and_no_key_is_printed_or_stored_where_it_does_not_belong(
    night: tuple[Path, str, int],
) -> None:
    folder, told, _ = night
    assert SECRET not in told
    for file in folder.iterdir():
        assert KEY not in file.read_text(), file
    assert KEY not in told
    assert (folder / "pairs.journal.jsonl").stat().st_mode & 0o777 == 0o600
    report = json.loads((folder / "pairs.report.json").read_text())
    assert SECRET not in json.dumps(report["documents"])


def test_a_budget_stops_a_run_with_status_3_and_a_larger_one_goes_on_from_there(tmp_path: Path) -> None:
    quick: Script = lambda server, body, times: chat(good(body["messages"][0]["content"]))  # noqa: E731
    with Server(quick) as server:
        assert finish(start(server, tmp_path / "whole", documents=6))[0] == 0
        whole, server.asked = Counter(server.asked), Counter()
        status, told = finish(start(server, tmp_path / "cut", "--max-requests", "10", documents=6))
        assert (status, sum(server.asked.values())) == (3, 10)
        assert "The budget (max_requests of 10) is spent" in told
        report = json.loads((tmp_path / "cut" / "pairs.report.json").read_text())
        unasked = [
            one
            for entry in report["documents"].values()
            for one in entry.get("failures", [])
            if not one["asked"]
        ]
        assert {one["reason"] for one in unasked} == {"not asked: the budget (max_requests of 10) is spent"}
        assert report["stopped_by"] == "max_requests of 10"
        assert finish(start(server, tmp_path / "cut", "--max-requests", "100", documents=6))[0] == 0
        assert server.asked == whole
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")
