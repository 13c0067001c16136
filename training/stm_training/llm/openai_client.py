"""Any OpenAI-compatible server (vLLM, Ollama, llama.cpp, TGI, OpenAI) through the ``openai`` package."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stm_retriever.errors import ConfigError, require
from stm_training.llm.base import Completion, LLMAccessError, LLMRequestError, Request
from stm_training.llm.retrying import Pause, backoff_seconds, retry_after_seconds

logger = logging.getLogger(__name__)

_RETRIED = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 403})
_ERROR_SHOWN = 200
_NO_KEY = "no-key"  # the package insists on one; servers on this machine rarely do


class OpenAIServer:
    """A model behind ``/v1/chat/completions``.

    At most ``concurrency`` requests are under way at once. 408, 409, 425, 429, 5xx, time-outs, broken
    connections and bodies that are no completion are asked again after a back-off, which honours
    ``Retry-After`` and holds for all threads; redirects are not followed, so that no text goes to a host
    that was not named.

    Args:
        base_url: For instance ``http://127.0.0.1:8000/v1``.
        model: The model's name at that server.
        api_key_env: Environment variable with the key; ``None``: no key. The key is never logged or stored.
        api_key_file: A file whose first line is the key; wins over the variable.
        timeout: Seconds for one request.
        max_retries: How often one request is asked again.
        concurrency: Requests under way at once.
        allow_remote: Allow a ``base_url`` that is not on this machine.
        document_count: How many documents would be sent, for the message.
        max_wait: Longest single wait in seconds; a server that asks for more gets no further request for it.
        backoff: First wait in seconds; doubles each time.
        sleep: Waits so many seconds (for tests).

    Raises:
        ConfigError: For a host elsewhere without ``allow_remote``, or an unusable setting or key.
        MissingExtraError: If ``openai`` is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = "OPENAI_API_KEY",
        api_key_file: Path | str | None = None,
        timeout: float = 120.0,
        max_retries: int = 6,
        concurrency: int = 4,
        allow_remote: bool = False,
        document_count: int | None = None,
        max_wait: float = 600.0,
        backoff: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not model or concurrency < 1 or max_retries < 0 or timeout <= 0:
            message = (
                f"model={model!r}, concurrency={concurrency}, max_retries={max_retries}, timeout={timeout}: "
                "a model's name, at least 1 request at once, no negative retries and a positive time-out "
                "are needed."
            )
            raise ConfigError(message)
        self.host = _host(base_url)
        self.is_remote = not is_loopback(self.host)
        self.base_url = base_url
        self.concurrency = concurrency
        self._model = model
        self._allow_remote = allow_remote
        if self.is_remote and not allow_remote:
            raise ConfigError(self._refusal(document_count))
        self._max_retries = max_retries
        self._max_wait = max_wait
        self._backoff = backoff
        self._pause = Pause(sleep)
        self._slots = threading.BoundedSemaphore(concurrency)
        self._without: set[str] = set()  # request fields that this server was seen to reject
        key = _read_key(api_key_env, api_key_file, needed=self.is_remote)
        self._openai = require("openai", extra="train", purpose="the client of OpenAI-compatible servers")
        # On this machine no proxy from the environment may get to see the texts.
        http = self._openai.DefaultHttpxClient(trust_env=self.is_remote, follow_redirects=False)
        self._client = self._openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http
        )
        self._scrub = key if key != _NO_KEY else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    def __repr__(self) -> str:
        return f"OpenAIServer(base_url={self.base_url!r}, model={self._model!r})"

    def announce(self, document_count: int) -> None:
        """Say where the documents go, if they leave this machine.

        Raises:
            ConfigError: If they would leave it without ``allow_remote``.
        """
        if not self.is_remote:
            return
        if not self._allow_remote:
            raise ConfigError(self._refusal(document_count))
        logger.warning(
            "The text of %d documents will be sent to %s (allow_remote is set).", document_count, self.host
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, request: Request) -> Completion:
        """Answer a request; see the class for what is asked again.

        Raises:
            LLMRequestError: If it failed for good.
            LLMAccessError: If the server refuses the key.
        """
        with self._slots:
            attempt = 0
            while True:
                self._pause.wait()
                try:
                    return self._completion(self._ask(request))
                except _Again as again:
                    self._wait_or_give_up(attempt, again)
                attempt += 1

    def _wait_or_give_up(self, attempt: int, again: _Again) -> None:
        too_long = again.retry_after is not None and again.retry_after > self._max_wait
        if attempt >= self._max_retries or too_long:
            tries = f"after {attempt + 1} tries"
            if too_long:
                tries = f"and asks to wait {again.retry_after:.0f} s, longer than {self._max_wait:.0f} s"
            message = (
                f"{self.host} gave no completion {tries}: {again.reason}. Nothing written so far is lost; "
                "check the server, then run again."
            )
            raise LLMRequestError(message, reason=again.reason, asked=again.asked) from again
        own = backoff_seconds(attempt, base=self._backoff, longest=min(60.0, self._max_wait))
        if again.retry_after is None:
            self._pause.sleep(own)
        else:
            self._pause.extend(again.retry_after)
        logger.info(
            "%s: %s; asking again (%d of %d)", self.host, again.reason, attempt + 1, self._max_retries
        )

    def _ask(self, request: Request) -> Any:
        openai = self._openai
        while True:
            arguments = self._arguments(request)
            try:
                return self._client.chat.completions.create(**arguments)
            except openai.APITimeoutError as error:
                raise _Again("timed out") from error
            except openai.APIConnectionError as error:
                raise _Again(f"not reached ({_cause(error)})", asked=False) from error
            except openai.APIStatusError as error:
                if self._drop_rejected_field(error, arguments):
                    continue
                raise self._status_error(error) from error
            except (openai.APIError, json.JSONDecodeError, UnicodeDecodeError) as error:
                raise _Again("the response body is no valid JSON") from error

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
        }
        if request.seed is not None:
            arguments["seed"] = request.seed
        if request.json_schema is not None:
            arguments["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.json_schema.name,
                    "schema": dict(request.json_schema.schema),
                    "strict": True,
                },
            }
        for field in self._without & set(arguments):
            value = arguments.pop(field)
            if field == "max_tokens":
                arguments["max_completion_tokens"] = value
        return arguments

    def _drop_rejected_field(self, error: Any, arguments: dict[str, Any]) -> bool:
        """Newer servers reject old fields and older ones new fields; learn which from their message."""
        if error.status_code not in (400, 422):
            return False
        said = str(error).lower()
        for field in ("response_format", "max_tokens", "temperature", "seed"):
            named = field in said or (field == "response_format" and "json_schema" in said)
            if named and field in arguments and field not in self._without:
                self._without.add(field)
                logger.info("%s does not take %r; it is left out from now on", self.host, field)
                return True
        return False

    def _status_error(self, error: Any) -> Exception:
        status = int(error.status_code)
        reason = f"HTTP {status}: {self._server_words(error)}"
        if status in _REFUSED:
            message = (
                f"{self.host} refuses access ({reason}). Check the key in the environment variable or file "
                "that the recipe names. Nothing written so far is lost."
            )
            return LLMAccessError(message)
        if status in _RETRIED or status >= 500:
            return _Again(reason, retry_after=retry_after_seconds(error.response.headers))
        message = f"{self.host} rejects the request for model {self._model!r} ({reason})."
        return LLMRequestError(message, reason=reason)

    def _server_words(self, error: Any) -> str:
        body: object = error.body
        words = body.get("message") if isinstance(body, dict) else None
        text = " ".join(words.split()) if isinstance(words, str) and words.strip() else "no message"
        if self._scrub:
            text = text.replace(self._scrub, "***")
        return text[:_ERROR_SHOWN]

    def _completion(self, response: Any) -> Completion:
        choices: object = getattr(response, "choices", None)
        choice: Any = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            raise _Again("the response is no chat completion")
        usage = getattr(response, "usage", None)
        content = message.content if isinstance(message.content, str) else ""
        refusal = getattr(message, "refusal", None)
        return Completion(
            text=content or (refusal if isinstance(refusal, str) else ""),
            model=response.model if isinstance(response.model, str) and response.model else self._model,
            prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
            completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
            finish_reason=str(choice.finish_reason or ""),
        )

    def _refusal(self, document_count: int | None) -> str:
        what = "the documents" if document_count is None else f"the text of {document_count} documents"
        return (
            f"{self.host} is not this machine, and {what} would be sent there. If they may leave this "
            "machine, set allow_remote: true (--allow-remote); else use a server on 127.0.0.1."
        )


class _Again(Exception):
    """This try failed; another may not."""

    def __init__(self, reason: str, *, retry_after: float | None = None, asked: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.asked = asked


def _host(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        message = (
            f"base_url={base_url!r} is no http or https address. Write it like http://127.0.0.1:8000/v1."
        )
        raise ConfigError(message)
    if parts.username or parts.password:
        message = (
            "base_url holds a user name or password, which would be stored with the run. Use api_key_env."
        )
        raise ConfigError(message)
    return parts.hostname


def is_loopback(host: str) -> bool:
    """Whether a host's name is this machine's own, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(variable: str | None, file: Path | str | None, *, needed: bool) -> str:
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"The key file {file} cannot be read. Put the key alone on its first line."
            raise ConfigError(message) from error
        if not lines or not lines[0].strip():
            message = f"The key file {file} is empty. Put the key alone on its first line."
            raise ConfigError(message)
        return lines[0].strip()
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key and needed and variable:
        message = f"The environment variable {variable} holds no key. Set it, or name a key file."
        raise ConfigError(message)
    return key or _NO_KEY


def _cause(error: BaseException) -> str:
    cause = error.__cause__
    return type(cause).__name__ if cause is not None else type(error).__name__
