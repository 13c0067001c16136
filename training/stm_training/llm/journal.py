"""Completions, written down one by one as they arrive, so that none is asked for twice.

Which failures are asked again: a request that the server saw and that failed for good (after all retries)
is answered for; a resumed run lists it and does not repeat it unless ``retry_failures`` is set. A request
that never reached the server was never asked, so the next run asks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from stm_retriever.errors import ConfigError, DataError
from stm_training.llm.base import Completion, Request

_MODE = 0o600


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One answered request.

    Attributes:
        key: See :func:`request_key`.
        document_id: For the reader of the file.
        task: What was asked, for instance ``"query/question"``.
        completion: The answer, or ``None`` for a failure.
        reason: Why it failed; empty for an answer.
        asked: The server saw the request.
        generator: The name that the model was asked by; a mixture has several.
    """

    key: str
    document_id: str
    task: str
    completion: Completion | None
    reason: str = ""
    asked: bool = True
    generator: str = ""

    @property
    def status(self) -> Literal["ok", "failed"]:
        """Answer or failure."""
        return "failed" if self.completion is None else "ok"


def request_key(model: str, request: Request, document_id: str) -> str:
    """SHA-256 over model, parameters, messages and document id: another prompt or text is another key."""
    messages = [[message.role, message.content] for message in request.messages]
    whole = [model, request.parameters(), messages, document_id]
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class Journal:
    """An append-only JSONL file of completions, readable by its owner alone.

    A row is on the disk before it is acknowledged. A last line torn by a crash was never acknowledged and
    is cut off. One process writes at a time.

    Args:
        path: The file; made where it is not there.
        retry_failures: Forget the failures in it, so that they are asked again.

    Raises:
        DataError: If a line other than the last is damaged.
        ConfigError: If another process is writing it.
    """

    def __init__(self, path: Path | str, *, retry_failures: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._closed = False
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, _MODE)
        try:
            _own(self._descriptor, self.path)
            self._rows = self._load(retry_failures)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Close the file; what was acknowledged is in it already."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def get(self, key: str) -> JournalRow | None:
        """The row of a request that was answered, here or in an earlier run."""
        with self._lock:
            return self._rows.get(key)

    def rows(self) -> list[JournalRow]:
        """All rows that hold, in the order in which they were written."""
        with self._lock:
            return list(self._rows.values())

    def append(self, row: JournalRow) -> None:
        """Write a row down; returns when it is on the disk.

        Raises:
            ConfigError: If the journal was closed in the meantime.
        """
        line = (json.dumps(_to_json(row), ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        with self._lock:
            if self._closed:  # a thread left behind by Ctrl-C must not write into another file
                message = f"The journal {self.path} is closed, so nothing is written. Open it again."
                raise ConfigError(message)
            before = os.fstat(self._descriptor).st_size
            try:
                view = memoryview(line)
                while view:
                    view = view[os.write(self._descriptor, view) :]
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, before)  # a full disk leaves no half row
                raise
            self._rows[row.key] = row

    def _load(self, retry_failures: bool) -> dict[str, JournalRow]:
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        rows: dict[str, JournalRow] = {}
        for number, line in enumerate(raw[:whole].split(b"\n")[:-1], start=1):
            row = self._row(line, number)
            if row is not None:
                rows[row.key] = row
        if whole < len(raw):
            os.ftruncate(self._descriptor, whole)
        return {
            key: row
            for key, row in rows.items()
            if row.completion is not None or (row.asked and not retry_failures)
        }

    def _row(self, line: bytes, number: int) -> JournalRow | None:
        if not line.strip():
            return None
        try:
            return _from_json(json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, KeyError, TypeError) as error:
            message = (
                f"{self.path}:{number}: this line of the journal is damaged ({type(error).__name__}). Delete "
                "the line: its completion will be asked for again, all others are kept."
            )
            raise DataError(message) from error


def _own(descriptor: int, path: Path) -> None:
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, _MODE)  # a file made earlier with a wider mode too
    try:
        import fcntl
    except ImportError:  # Windows: the mode and the lock are not to be had this way
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = f"Another process is writing {path}. Wait for it to end, or give this run another folder."
        raise ConfigError(message) from error


def _to_json(row: JournalRow) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "key": row.key,
        "document_id": row.document_id,
        "task": row.task,
        "status": row.status,
        "generator": row.generator,
    }
    if row.completion is None:
        return {**fields, "reason": row.reason, "asked": row.asked}
    done = row.completion
    return {
        **fields,
        "model": done.model,
        "text": done.text,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "finish_reason": done.finish_reason,
    }


def _from_json(fields: dict[str, Any]) -> JournalRow:
    completion = None
    if fields["status"] == "ok":
        completion = Completion(
            text=fields["text"],
            model=fields["model"],
            prompt_tokens=fields["prompt_tokens"],
            completion_tokens=fields["completion_tokens"],
            finish_reason=fields["finish_reason"],
        )
    return JournalRow(
        key=fields["key"],
        document_id=fields["document_id"],
        task=fields["task"],
        completion=completion,
        reason=fields.get("reason", ""),
        asked=fields.get("asked", True),
        generator=fields.get("generator", ""),
    )
