"""What the client refuses before anything is sent, and what it keeps to itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from stm_retriever.errors import ConfigError
from stm_training.llm.openai_client import OpenAIServer

REMOTE = "https://llm.example.org/v1"
LOCAL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    "url",
    [
        REMOTE,
        "http://localhost.example.org/v1",
        "http://127.0.0.1.example.org/v1",
        "http://0.0.0.0:8000/v1",
        "http://192.168.1.5/v1",
        "http://127.0.0.1@example.org/v1",
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        OpenAIServer(url, "m", document_count=42)


def test_the_refusal_names_the_host_the_number_of_documents_and_the_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIServer(REMOTE, "m", document_count=42)
    message = str(caught.value)
    assert "llm.example.org" in message
    assert "42 documents" in message
    assert "allow_remote: true" in message


@pytest.mark.parametrize("url", ["http://localhost:1/v1", LOCAL, "http://[::1]:1/v1", "http://127.9.9.9/v1"])
def test_this_machine_needs_no_leave_and_no_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert not OpenAIServer(url, "m").is_remote


def test_an_allowed_remote_host_is_named_with_the_number_of_documents_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server = OpenAIServer(REMOTE, "m", api_key_env="MY_KEY", allow_remote=True)
    with caplog.at_level(logging.WARNING):
        server.announce(7)
    assert "The text of 7 documents will be sent to llm.example.org" in caplog.text
    assert "sk-very-secret" not in caplog.text + repr(server) + str(vars(server).get("base_url"))


def test_a_remote_host_needs_a_key_and_the_message_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY holds no key"):
        OpenAIServer(REMOTE, "m", api_key_env="MY_KEY", allow_remote=True)


def test_a_key_file_is_read_and_a_bad_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    OpenAIServer(REMOTE, "m", api_key_file=tmp_path / "key", allow_remote=True)
    (tmp_path / "empty").write_text("\n")
    for name, told in (("empty", "is empty"), ("none", "cannot be read")):
        with pytest.raises(ConfigError, match=told):
            OpenAIServer(REMOTE, "m", api_key_file=tmp_path / name, allow_remote=True)


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("127.0.0.1:8000", {}),
        ("ftp://127.0.0.1/v1", {}),
        ("http://user:pass@127.0.0.1/v1", {}),
        (LOCAL, {"concurrency": 0}),
        (LOCAL, {"max_retries": -1}),
        (LOCAL, {"timeout": 0}),
        (LOCAL, {"model": ""}),
    ],
)
def test_unusable_settings_are_refused(url: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OpenAIServer(url, **{"model": "m", **arguments})
