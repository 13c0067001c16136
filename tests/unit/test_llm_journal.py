"""The journal: what is written is on the disk, private, and never asked for again."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stm_retriever.errors import ConfigError, DataError
from stm_training.llm.base import Completion, JsonSchema, Message, Request
from stm_training.llm.journal import Journal, JournalRow, request_key

REQUEST = Request((Message("user", "hello"),), seed=1, json_schema=JsonSchema("s", {"type": "object"}))


def row(key: str, text: str | None = "answer", reason: str = "", asked: bool = True) -> JournalRow:
    done = None if text is None else Completion(text, "model", 3, 2, "stop")
    return JournalRow(key, "doc", "query/question", done, reason, asked)


@pytest.mark.parametrize(
    "other",
    [
        request_key("other", REQUEST, "doc"),
        request_key("model", REQUEST, "other"),
        request_key("model", replace(REQUEST, messages=(Message("user", "hello!"),)), "doc"),
        request_key("model", replace(REQUEST, messages=(Message("system", "hello"),)), "doc"),
        request_key("model", replace(REQUEST, temperature=0.1), "doc"),
        request_key("model", replace(REQUEST, max_tokens=9), "doc"),
        request_key("model", replace(REQUEST, seed=2), "doc"),
        request_key("model", replace(REQUEST, json_schema=None), "doc"),
    ],
)
def test_whatever_changes_an_answer_changes_the_key(other: str) -> None:
    assert other != request_key("model", REQUEST, "doc")
    assert request_key("model", REQUEST, "doc") == request_key("model", replace(REQUEST), "doc")


def test_rows_are_there_again_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    rows = [row("a", "näive\nanswer \ud800"), row("b", None, "HTTP 404")]
    with Journal(path) as journal:
        for one in rows:
            journal.append(one)
    with Journal(path) as journal:
        assert [journal.get("a"), journal.get("b"), journal.get("c")] == [*rows, None]
        assert len(journal) == 2


def test_only_the_owner_may_read_it_even_if_it_was_made_otherwise(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("")
    (tmp_path / "old.jsonl").chmod(0o644)
    for name in ("old.jsonl", "new.jsonl"):
        with Journal(tmp_path / name):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_row_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append(row("a"))
        assert synced == [(tmp_path / "j.jsonl").stat().st_size]


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_is_cut_off_and_what_follows_is_whole(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append(row("a"))
        whole = path.stat().st_size
        journal.append(row("b"))
    raw = path.read_bytes()
    path.write_bytes(raw[: whole + keep] if keep > 0 else raw[:keep])
    with Journal(path) as journal:
        assert (journal.get("a") is not None, journal.get("b")) == (True, None)
        journal.append(row("c"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append(row("a"))
        journal.append(row("b"))
    path.write_bytes(path.read_bytes().replace(b'{"key": "a"', b'{"key": a"'))
    with pytest.raises(DataError, match=r"j\.jsonl:1: this line of the journal is damaged"):
        Journal(path)


def test_failures_are_answered_for_unless_they_are_to_be_retried_or_never_reached_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append(row("seen", None, "HTTP 404"))
        journal.append(row("unreached", None, "not reached", asked=False))
        journal.append(row("done"))
    with Journal(path) as journal:
        assert [journal.get(k) is not None for k in ("seen", "unreached", "done")] == [True, False, True]
    with Journal(path, retry_failures=True) as journal:
        assert [journal.get(k) is not None for k in ("seen", "unreached", "done")] == [False, False, True]


def test_a_later_row_replaces_an_earlier_failure(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append(row("a", None, "HTTP 500"))
        journal.append(row("a", "now"))
    with Journal(path) as journal:
        found = journal.get("a")
        assert found is not None
        assert found.completion == Completion("now", "model", 3, 2, "stop")


def test_a_second_writer_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl"), pytest.raises(ConfigError, match="Another process is writing"):
        Journal(tmp_path / "j.jsonl")
    Journal(tmp_path / "j.jsonl").close()


def test_rows_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:

        def write(n: int) -> None:
            for i in range(20):
                journal.append(row(f"{n}-{i}", "x" * 5000))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(path) as journal:
        assert len(journal) == 80
