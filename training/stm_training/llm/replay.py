"""Recorded completions behind the same HTTP interface that a live model has."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from stm_retriever.errors import DataError
from stm_training.data.rows import BadRows, as_id, read_json_rows
from stm_training.llm.markers import (
    NEGATIVE_TASK,
    QUERY_TASK,
    marked_document,
    marked_task,
    task_of_schema,
)

RECORDED_MODEL = "recorded"

_LARGEST_BODY = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Recording:
    """What a model once wrote for one document.

    Attributes:
        queries: Query texts by kind.
        hard_negative: The hard negative, or ``None``.
        written_by: What wrote it.
    """

    queries: Mapping[str, tuple[str, ...]]
    hard_negative: str | None
    written_by: str


def read_recordings(path: Path | str) -> dict[str, Recording]:
    """Read recorded completions.

    Args:
        path: JSONL rows ``{"_id", "queries": [{"type", "text"}], "hard_negative": {"for", "text"},
            "written_by"}``; ``hard_negative`` and ``written_by`` may be missing.

    Returns:
        Recordings by document id.

    Raises:
        DataError: With file and line, for a row of another form or an id that is there twice.
    """
    file = Path(path)
    recordings: dict[str, Recording] = {}
    for line, row in read_json_rows(file, BadRows("raise")):
        id_ = as_id(row.get("_id"))
        recording = _recording(row)
        if id_ is None or recording is None or id_ in recordings:
            cause = "its '_id' is missing or was used before" if recording is not None else "not of the form"
            message = (
                f"{file}:{line}: no usable recorded completion ({cause}; _id {row.get('_id')!r}). A row is "
                '{"_id", "queries": [{"type", "text"}], "hard_negative": {"for", "text"}, "written_by"}.'
            )
            raise DataError(message)
        recordings[id_] = recording
    return recordings


def _recording(row: Mapping[str, Any]) -> Recording | None:
    queries: dict[str, list[str]] = {}
    negative = row.get("hard_negative") or {}
    try:
        for query in row.get("queries") or []:
            queries.setdefault(query["type"], []).append(query["text"])
        text = negative.get("text")
    except (AttributeError, KeyError, TypeError):
        return None
    texts = [t for kind in queries.values() for t in kind] + ([] if text is None else [text])
    if not all(isinstance(t, str) for t in texts):
        return None
    written_by = row.get("written_by")
    return Recording(
        queries={kind: tuple(found) for kind, found in queries.items()},
        hard_negative=text,
        written_by=written_by if isinstance(written_by, str) and written_by else RECORDED_MODEL,
    )


class ReplayServer:
    """An OpenAI-compatible server on this machine that answers from recordings.

    It finds the document of a request by the text between the prompt's document markers, and the task by
    the prompt's task line or the JSON schema's name. A document or kind that was not recorded is a 404
    whose message says so. Used as a context manager; ``base_url`` is valid inside.

    Args:
        recordings: The recorded completions' file, or recordings by document id.
        documents: Document content by id, as the prompts hold it.

    Attributes:
        requests: How many completions were asked for.
    """

    def __init__(
        self, recordings: Path | str | Mapping[str, Recording], documents: Mapping[str, str]
    ) -> None:
        if not isinstance(recordings, Mapping):
            recordings = read_recordings(recordings)
        self._recordings = recordings
        self._ids: dict[bytes, str] = {}
        for id_, content in documents.items():
            digest = _digest(content)
            if digest not in self._ids or (id_ in recordings and self._ids[digest] not in recordings):
                self._ids[digest] = id_
        self.requests = 0
        self._count_lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """The address for a client.

        Raises:
            RuntimeError: Outside of the context manager.
        """
        if self._server is None:
            message = "The replay server is not running; use it as a context manager."
            raise RuntimeError(message)
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ReplayServer:
        handler = type("_BoundHandler", (_Handler,), {"replay": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False  # idle keep-alive connections must not hold us up
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="stm-replay", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def answer(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON for one chat request."""
        with self._count_lock:
            self.requests += 1
        prompt = _prompt(body)
        document = None if prompt is None else marked_document(prompt)
        if prompt is None or document is None:
            return _error(400, "the request holds no document between <document> markers")
        task = marked_task(prompt) or task_of_schema(_schema_name(body))
        if task is None:
            return _error(400, "the request names no task")
        id_ = self._ids.get(_digest(document))
        recording = None if id_ is None else self._recordings.get(id_)
        if recording is None:
            return _error(404, "unknown document: nothing was recorded for this text")
        text = _answer_text(task, recording)
        if text is None:
            return _error(404, f"nothing was recorded for task {task!r} of document {id_!r}")
        return 200, _chat_completion(text, recording.written_by, prompt)


class _Handler(BaseHTTPRequestHandler):
    replay: ReplayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave together: no delayed acknowledgement in between

    def do_GET(self) -> None:
        if self.path.split("?")[0] != "/v1/models":
            self._send(*_error(404, f"no such address: {self.path}"))
            return
        model = {"id": RECORDED_MODEL, "object": "model", "created": 0, "owned_by": "stm-retriever"}
        self._send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _LARGEST_BODY:
            self.close_connection = True
            self._send(*_error(411, "a content-length of at most 16 MiB is needed"))
            return
        raw = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._send(*_error(404, f"no such address: {self.path}"))
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._send(*_error(400, "the request body is no JSON"))
            return
        self._send(*(self.replay.answer(body) if isinstance(body, dict) else _error(400, "no JSON object")))

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        raw = json.dumps(body).encode("ascii")
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests hold the users' texts."""


def _digest(content: str) -> bytes:
    return hashlib.sha256(content.strip().encode("utf-8", "surrogatepass")).digest()


def _prompt(body: Mapping[str, Any]) -> str | None:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        if (
            isinstance(content, str)
            and message.get("role") == "user"
            and marked_document(content) is not None
        ):
            return content
    return None


def _schema_name(body: Mapping[str, Any]) -> str:
    try:
        name = body["response_format"]["json_schema"]["name"]
    except (KeyError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _answer_text(task: str, recording: Recording) -> str | None:
    if task.startswith(NEGATIVE_TASK):
        return recording.hard_negative
    queries = recording.queries.get(task.removeprefix(QUERY_TASK))
    return None if not queries else json.dumps({"queries": list(queries)}, ensure_ascii=False)


def _chat_completion(text: str, written_by: str, prompt: str) -> dict[str, Any]:
    # counted in words: nothing here has the recorded model's tokenizer
    asked, written = len(prompt.split()), len(text.split())
    return {
        "id": "recorded",
        "object": "chat.completion",
        "created": 0,
        "model": written_by,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
    }


def _error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": status}}
