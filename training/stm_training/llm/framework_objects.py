"""LLM objects of LangChain and LlamaIndex, by their methods alone: neither framework is imported here."""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from stm_retriever.errors import ConfigError
from stm_training.llm.base import Completion, LLMAccessError, LLMRequestError, Message, Request
from stm_training.llm.openai_client import is_loopback
from stm_training.llm.retrying import Pause, backoff_seconds, retry_after_seconds
from stm_training.llm.telemetry import telemetry_off, tracing_off

logger = logging.getLogger(__name__)

_ADDRESSES = ("base_url", "api_base", "openai_api_base", "azure_endpoint", "endpoint_url", "server_url")
_NAMES = ("model_name", "model", "model_id", "deployment_name")
_RETRIED = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 403})
# An error of these kinds says that the call is wrong; it would be wrong again.
_HOPELESS = (TypeError, AttributeError, NotImplementedError, ImportError)
_LLAMA_INDEX_TYPES = "llama_index.core.base.llms.types"


class _FrameworkModel(ABC):
    """What the wrappers share: where the texts go, and what is asked again.

    Args:
        model: The framework's object.
        name: For the journal; ``None``: what the object says, else its class.
        allow_remote: Allow an object that does not show an address on this machine.
        concurrency: Requests under way at once.
        max_retries: How often one request is asked again; most objects also do so themselves.
        pass_on: Which of ``temperature``, ``max_tokens`` and ``seed`` are given to the object with each
            request. None by default: its own settings hold, and some objects take none of them.
        backoff: First wait in seconds; doubles each time.
        sleep: Waits so many seconds (for tests).

    Raises:
        ConfigError: If it is not such an object, or may send texts elsewhere without ``allow_remote``.
    """

    _method = ""
    _kind = ""

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        allow_remote: bool = False,
        concurrency: int = 4,
        max_retries: int = 3,
        pass_on: Sequence[str] = (),
        backoff: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not callable(getattr(model, self._method, None)):
            message = (
                f"{type(model).__name__} has no method {self._method!r}, so it is not {self._kind}. Give the "
                "object itself, not its class or its name."
            )
            raise ConfigError(message)
        unknown = sorted(set(pass_on) - {"temperature", "max_tokens", "seed"})
        if unknown or concurrency < 1 or max_retries < 0:
            message = (
                f"pass_on={list(pass_on)}, concurrency={concurrency}, max_retries={max_retries}: only "
                "temperature, max_tokens and seed can be passed on, and at least 1 request and no negative "
                "retries are needed."
            )
            raise ConfigError(message)
        telemetry_off()
        self._model = model
        self._label = name or _text_attribute(model, _NAMES) or type(model).__name__
        self._host = _host(model)
        self.is_remote = self._host is None or not is_loopback(self._host)
        self._allow_remote = allow_remote
        self.concurrency = concurrency
        self._max_retries = max_retries
        self._pass_on = tuple(pass_on)
        self._backoff = backoff
        self._pause = Pause(sleep)
        if self.is_remote and not allow_remote:
            raise ConfigError(self._refusal())

    @property
    def name(self) -> str:
        """The model's name."""
        return self._label

    def announce(self, document_count: int) -> None:
        """Say where the documents go, unless they stay on this machine."""
        if self.is_remote:
            logger.warning(
                "The text of %d documents will be given to %s, which may send it to %s (allow_remote is "
                "set).",
                document_count,
                type(self._model).__name__,
                self._host or "a host that it does not name",
            )

    def complete(self, request: Request) -> Completion:
        """Answer a request.

        Raises:
            LLMRequestError: If it failed for good.
            LLMAccessError: If no request can succeed: a refused key, or an object that cannot be called so.
        """
        options = {name: getattr(request, name) for name in self._pass_on}
        options = {name: value for name, value in options.items() if value is not None}
        attempt = 0
        while True:
            self._pause.wait()
            try:
                with tracing_off():
                    return self._call(request.messages, options)
            except Exception as error:  # whatever the object's provider raises
                self._wait_or_give_up(attempt, error)
            attempt += 1

    @abstractmethod
    def _call(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Completion:
        """Ask the object once; whatever its provider raises passes through."""

    def _wait_or_give_up(self, attempt: int, error: Exception) -> None:
        status = _status(error)
        # Never the error's own words: they may quote the prompt.
        reason = type(error).__name__ + (f", HTTP {status}" if status else "")
        if status in _REFUSED or isinstance(error, _HOPELESS):
            message = (
                f"{type(self._model).__name__} cannot be used ({reason}). Try it with a prompt of your own "
                "and mend what it says; all answers so far are kept."
            )
            raise LLMAccessError(message) from error
        again = status is None or status in _RETRIED or status >= 500
        if not again or attempt >= self._max_retries:
            message = f"{self._label} gave no completion after {attempt + 1} tries: {reason}."
            raise LLMRequestError(
                message, reason=reason, asked=not isinstance(error, ConnectionError)
            ) from error
        headers = getattr(getattr(error, "response", None), "headers", None)
        asked_for = None if headers is None else retry_after_seconds(headers)
        if asked_for is None:
            self._pause.sleep(backoff_seconds(attempt, base=self._backoff, longest=60.0))
        else:
            self._pause.extend(min(asked_for, 600.0))
        logger.info("%s: %s; asking again (%d of %d)", self._label, reason, attempt + 1, self._max_retries)

    def _refusal(self) -> str:
        where = (
            f"sends texts to {self._host}" if self._host else "does not show that it stays on this machine"
        )
        return (
            f"{type(self._model).__name__} {where}. If the documents may leave this machine, set "
            "allow_remote=True (also for an object that runs here and has no address)."
        )


class LangChainModel(_FrameworkModel):
    """A LangChain chat model (``BaseChatModel``, or any runnable that takes messages)."""

    _method = "invoke"
    _kind = "a LangChain chat model"

    def _call(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Completion:
        answer = self._model.invoke([(m.role, m.content) for m in messages], **options)
        content = getattr(answer, "content", answer)
        usage = getattr(answer, "usage_metadata", None) or {}
        about = getattr(answer, "response_metadata", None) or {}
        return Completion(
            text=_text(content),
            model=str(about.get("model_name") or about.get("model") or self._label),
            prompt_tokens=int(usage.get("input_tokens") or 0),
            completion_tokens=int(usage.get("output_tokens") or 0),
            finish_reason=str(about.get("finish_reason") or about.get("stop_reason") or ""),
        )


class LlamaIndexModel(_FrameworkModel):
    """A LlamaIndex ``LLM``; chat models get the conversation, others its transcript."""

    _method = "complete"
    _kind = "a LlamaIndex LLM"

    def __init__(self, model: Any, *, name: str | None = None, **options: Any) -> None:
        about = getattr(model, "metadata", None)
        named = getattr(about, "model_name", "")
        known = named if isinstance(named, str) and named != "unknown" else None
        super().__init__(model, name=name or known, **options)
        self._is_chat = bool(getattr(about, "is_chat_model", False))

    def _call(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Completion:
        types: Any = sys.modules.get(_LLAMA_INDEX_TYPES)  # there, if the object is LlamaIndex's
        if self._is_chat and types is not None:
            turns = [types.ChatMessage(role=m.role, content=m.content) for m in messages]
            answer = self._model.chat(turns, **options)
            text = answer.message.content or ""
        else:
            answer = self._model.complete(_transcript(messages), **options)
            text = answer.text or ""
        usage = _usage(getattr(answer, "raw", None))
        return Completion(
            text=text,
            model=self._label,
            prompt_tokens=usage[0],
            completion_tokens=usage[1],
        )


def _transcript(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    turns = [f"{m.role.capitalize()}: {m.content}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _text(content: Any) -> str:
    """An answer's text; newer models answer in blocks, of which thoughts and tool calls are none."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    parts = [block if isinstance(block, str) else block.get("text", "") for block in blocks]
    return "".join(part for part in parts if isinstance(part, str))


def _usage(raw: Any) -> tuple[int, int]:
    """Prompt and completion tokens in a provider's response, where it has them in a usual place."""
    usage = _get(raw, "usage")
    counts = []
    for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        found = [_get(usage, name) for name in names]
        counts.append(next((value for value in found if isinstance(value, int)), 0))
    return counts[0], counts[1]


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _status(error: Exception) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def _text_attribute(model: Any, names: Sequence[str]) -> str | None:
    for name in names:
        value = getattr(model, name, None)
        if isinstance(value, str) and value:
            return value
    return None


def _host(model: Any) -> str | None:
    """The host that the object says it talks to; ``None`` if it says none."""
    address = _text_attribute(model, _ADDRESSES)
    return urlsplit(address).hostname if address else None
