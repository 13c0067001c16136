"""What a language model is to us: one request, one completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from stm_retriever.errors import LLMError


class LLMRequestError(LLMError):
    """One request failed for good; the others may succeed.

    Attributes:
        reason: Short and free of the request's text, for the journal: ``"HTTP 404: unknown document"``.
        asked: The server saw the request (false: it could not be reached).
    """

    def __init__(self, message: str, *, reason: str, asked: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.asked = asked


class LLMAccessError(LLMError):
    """No request can succeed: the key is refused, or the server may not be used."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The form an answer should have; servers may ignore it, so answers are parsed with distrust."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a language model.

    Attributes:
        messages: The conversation; the last turn is the user's.
        temperature: Sampling temperature.
        max_tokens: Longest answer, in tokens.
        seed: Passed on to servers that know it.
        json_schema: Asked for where it is useful, never relied on.
    """

    messages: tuple[Message, ...]
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int | None = None
    json_schema: JsonSchema | None = None

    def parameters(self) -> dict[str, Any]:
        """Everything but the messages, as JSON."""
        schema = None if self.json_schema is None else asdict(self.json_schema)
        return {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "json_schema": schema,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back.

    Attributes:
        text: The answer, as it came; may be empty.
        model: What wrote it, as the server says.
        prompt_tokens: As the server counts; where it does not, 0, and an estimate in the journal.
        completion_tokens: Likewise.
        finish_reason: ``"stop"``, ``"length"``, or what the server says.
    """

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""


class LLM(Protocol):
    """Anything that completes a request; called from several threads at once.

    Attributes:
        name: The model's name; part of every journal key.
    """

    @property
    def name(self) -> str:
        """The model's name."""

    def complete(self, request: Request) -> Completion:
        """Answer a request.

        Raises:
            LLMRequestError: If this request failed for good.
            LLMAccessError: If no request can succeed.
        """


@runtime_checkable
class SendsDocuments(Protocol):
    """An LLM that sends texts somewhere, and says so before the first one leaves."""

    def announce(self, document_count: int) -> None:
        """Name the host and the number of documents, or refuse."""


@runtime_checkable
class ChoosesModel(Protocol):
    """Several LLMs, one of which answers for each task."""

    def choose(self, document_id: str, task: str) -> LLM:
        """Which one; the same for the same task in every run."""


@runtime_checkable
class CountsTokens(Protocol):
    """An LLM that knows its own tokenizer."""

    def count_tokens(self, request: Request) -> int:
        """Tokens of the request's prompt."""
