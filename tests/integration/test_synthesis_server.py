"""Synthesis against a real HTTP server that misbehaves; killed runs are in test_synthesis_kills.py."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stm_training.data.records import Passage
from stm_training.llm.base import LLMAccessError, LLMRequestError, Message, Request
from stm_training.llm.journal import Journal
from stm_training.llm.markers import marked_document, marked_task
from stm_training.llm.openai_client import OpenAIServer
from stm_training.synthesize.run import synthesize

Reply = tuple[int, dict[str, str], bytes]
Script = Callable[["Server", dict[str, Any], int], Reply]
AT_ONCE = 3
SECRET = "Patient Doe"  # in every document: it must never reach a log


def passages(count: int) -> list[Passage]:
    return [
        Passage(f"d{n}", f"Body {n} tells about {SECRET} and illness {n} in words.", f"Title {n}")
        for n in range(count)
    ]


def chat(text: str, **fields: Any) -> Reply:
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny-1b",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        **fields,
    }
    return 200, {}, json.dumps(body).encode()


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


def good(prompt: str) -> str:
    document, task = marked_document(prompt), marked_task(prompt)
    assert document is not None
    assert task is not None
    n = document.split()[1]
    if task.startswith("hard_negative/"):
        return f"Weather report {n}: rain in the north, sun in the south, and little wind along the coast."
    return json.dumps({"queries": [f"Which {task.removeprefix('query/')} fits ailment {n}?"]})


class Server:
    """Follows a script; counts how often each conversation was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                if not raw:  # the client was killed between header and body
                    self.close_connection = True
                    return
                body = json.loads(raw)
                with server._lock:
                    key = json.dumps(body["messages"])
                    server.asked[key] += 1
                    times = server.asked[key]
                    server.times.append(time.monotonic())
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers.items()))
                status, headers, raw = server.script(server, body, times)
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None: ...

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client was killed
                    self.close_connection = True

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def client(server: Server, **options: Any) -> OpenAIServer:
    return OpenAIServer(server.url, "tiny", **{"backoff": 0.01, "timeout": 10, **options})


def ask(server: Server, **options: Any) -> str:
    return client(server, **options).complete(Request((Message("user", "hello"),))).text


def first(bad: Reply, count: int = 1) -> Script:
    """Answer badly so many times, then well."""
    return lambda server, body, times: bad if times <= count else chat("fine")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield


pytestmark = pytest.mark.usefixtures("no_key")


@pytest.mark.parametrize(
    "bad",
    [
        failure(500),
        failure(503),
        failure(408),
        failure(429),
        (200, {}, b'{"id": "x", "choices": [{"mess'),
        (200, {}, b'{"hello": 1}'),
        (200, {}, b"[1]"),
        (200, {}, b'{"choices": []}'),
        (200, {"content_type": "text/html"}, b"<html>busy</html>"),
    ],
    ids=["500", "503", "408", "429", "half", "schema", "list", "choices", "html"],
)
def test_what_may_pass_is_asked_again(bad: Reply) -> None:
    with Server(first(bad, 2)) as server:
        assert ask(server) == "fine"
        assert len(server.bodies) == 3


def test_retry_after_is_honoured_by_all_threads() -> None:
    slept: list[float] = []
    with Server(first(failure(429, retry_after="7"))) as server:
        llm = client(server, sleep=slept.append)
        llm._pause._clock = lambda: sum(slept)  # time passes by sleeping alone
        assert llm.complete(Request((Message("user", "hello"),))).text == "fine"
    assert slept == [7]


def test_a_wait_longer_than_allowed_is_a_failure_that_says_so() -> None:
    with Server(first(failure(429, retry_after="3600"))) as server:
        with pytest.raises(LLMRequestError, match="asks to wait 3600 s, longer than 600 s"):
            ask(server)
        assert len(server.bodies) == 1


def test_retries_are_bounded_and_the_last_reason_is_told() -> None:
    with Server(lambda *_: failure(500, "out of memory")) as server:
        with pytest.raises(LLMRequestError, match="after 3 tries: HTTP 500: out of memory"):
            ask(server, max_retries=2)
        assert len(server.bodies) == 3


def test_a_server_that_hangs_is_asked_again() -> None:
    def script(server: Server, body: dict[str, Any], times: int) -> Reply:
        if times == 1:
            time.sleep(1.0)
        return chat("fine")

    with Server(script) as server:
        assert ask(server, timeout=0.3) == "fine"


def test_a_request_that_is_wrong_is_not_repeated() -> None:
    with Server(lambda *_: failure(404, "no such model")) as server:
        with pytest.raises(LLMRequestError) as caught:
            ask(server)
        assert (caught.value.reason, len(server.bodies)) == ("HTTP 404: no such model", 1)


def test_a_refused_key_is_told_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server(lambda *_: failure(401, "bad key sk-secret")) as server:
        with pytest.raises(LLMAccessError) as caught:
            ask(server)
        assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value)
    assert "***" in str(caught.value)


def test_no_redirect_is_followed_so_that_no_text_goes_elsewhere() -> None:
    with Server(lambda *_: chat("stolen")) as other:
        with Server(lambda *_: (307, {"location": other.url + "/chat/completions"}, b"")) as server:
            with pytest.raises(LLMRequestError, match="HTTP 307"):
                ask(server)
        assert other.bodies == []


def test_a_proxy_from_the_environment_never_sees_what_stays_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Server(lambda *_: chat("stolen")) as proxy, Server(lambda *_: chat("fine")) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(server) == "fine"


@pytest.mark.parametrize("field", ["response_format", "max_tokens", "seed"])
def test_a_field_that_the_server_rejects_is_left_out_from_then_on(field: str, tmp_path: Path) -> None:
    def script(server: Server, body: dict[str, Any], times: int) -> Reply:
        if field in body:
            return failure(400, f"Unsupported parameter: '{field}'")
        return chat(good(body["messages"][0]["content"]))

    with Server(script) as server:
        llm = client(server)
        result = synthesize(passages(3), llm, journal=tmp_path / "j", concurrency=1, negatives=False)
        assert len(result.pairs) == 9
        assert sum(field in body for body in server.bodies) == 1
        assert field != "max_tokens" or server.bodies[-1]["max_completion_tokens"] == 512


def test_after_a_bad_night_every_document_is_done_or_listed_and_no_text_reached_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def script(server: Server, body: dict[str, Any], times: int) -> Reply:
        prompt = body["messages"][0]["content"]
        n = int((marked_document(prompt) or "").split()[1])
        reask = len(body["messages"]) > 1
        trouble: dict[int, Reply | None] = {
            0: failure(429, "slow down", retry_after="0.05") if times == 1 else None,
            1: failure(500) if times <= 2 else None,
            2: (200, {}, b'{"id": "x", "cho') if times == 1 else None,
            3: None if reask else chat('{"answer": {"to": "everything"}}'),
            4: chat("I'm sorry, but I cannot help with that."),
            5: chat(""),
            6: failure(400, "the prompt is too long"),
            7: None if reask else chat('{"queries": ["Half a que'),
            8: chat("", choices=[]) if times == 1 else None,
            9: failure(503),
        }
        return trouble.get(n) or chat(good(prompt))

    documents = passages(12)
    with Server(script) as server, caplog.at_level(logging.INFO, logger="stm_training"):
        result = synthesize(documents, client(server, max_retries=3), journal=tmp_path / "j", concurrency=4)
    done = {pair.positive_id for pair in result.pairs}
    failed = {one.document_id: one.reason for one in result.failures}
    assert done == {"d0", "d1", "d2", "d3", "d7", "d8", "d10", "d11"}
    assert result.dropped["refusal"].count == 3
    assert set(failed) == {"d5", "d6", "d9"}
    assert failed["d5"] == "no usable answer in 3 tries: it is empty"
    assert failed["d6"] == "HTTP 400: the prompt is too long"
    assert failed["d9"] == "HTTP 503: no"
    assert Counter(one.document_id for one in result.failures) == {"d5": 3, "d6": 3, "d9": 3}
    assert SECRET not in caplog.text
    assert all(pair.negatives and pair.source == "tiny-1b" for pair in result.pairs)


def test_a_run_that_ended_asks_nothing_when_started_again(tmp_path: Path) -> None:
    with Server(lambda server, body, times: chat(good(body["messages"][0]["content"]))) as server:
        result = synthesize(passages(5), client(server), journal=tmp_path / "j")
        count = len(server.bodies)
        with Journal(tmp_path / "j") as journal:
            again = synthesize(passages(5), client(server), journal=journal)
        assert (len(server.bodies), again.pairs) == (count, result.pairs)


def settle(server: Server) -> None:
    count = -1
    while count != len(server.bodies):
        count = len(server.bodies)
        time.sleep(0.12)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def keys(path: Path) -> set[str]:
    found = [json.loads(line)["key"] for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]
    assert len(found) == len(set(found))  # no completion is in the journal twice
    return set(found)
