"""LLM objects of LangChain and LlamaIndex, with the frameworks' own stand-ins."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    FakeMessagesListChatModel,
    GenericFakeChatModel,
)
from langchain_core.messages import AIMessage
from llama_index.core.llms import CompletionResponse, LLMMetadata, MockLLM
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.llm.base import LLMAccessError, LLMRequestError, Message, Request
from stm_training.llm.framework_objects import LangChainModel, LlamaIndexModel
from stm_training.synthesize.run import synthesize

REQUEST = Request((Message("user", "hello"),), temperature=0.3, max_tokens=9, seed=5)
TALK = Request((Message("user", "hello"), Message("assistant", "?"), Message("user", "again")))
QUERIES = json.dumps({"queries": ["What helps against a runny nose?"]})


def test_a_langchain_model_gets_the_conversation_and_its_figures_are_read() -> None:
    seen: list[Any] = []

    class Recording(FakeMessagesListChatModel):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((messages, kwargs))
            return super()._generate(messages, *args, **kwargs)

    answer = AIMessage(
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}],
        usage_metadata={"input_tokens": 11, "output_tokens": 3, "total_tokens": 14},
        response_metadata={"model_name": "big-1", "finish_reason": "length"},
    )
    llm = LangChainModel(Recording(responses=[answer]), name="big", allow_remote=True)
    completion = llm.complete(TALK)
    assert (completion.text, completion.model, completion.finish_reason) == ("fine", "big-1", "length")
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 3)
    messages, options = seen[0]
    assert [(m.type, m.content) for m in messages] == [("human", "hello"), ("ai", "?"), ("human", "again")]
    assert not {"temperature", "max_tokens", "seed"} & set(options)


def test_parameters_are_passed_on_only_where_asked_for() -> None:
    seen: list[dict[str, Any]] = []

    class Recording(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            seen.append(kwargs)
            return super()._call(*args, **kwargs)

    model = Recording(responses=["fine"])
    LangChainModel(model, allow_remote=True, pass_on=("temperature", "seed")).complete(REQUEST)
    assert {"temperature": 0.3, "seed": 5}.items() <= seen[0].items()
    assert "max_tokens" not in seen[0]
    with pytest.raises(ConfigError, match="pass_on"):
        LangChainModel(model, allow_remote=True, pass_on=("top_p",))


def test_a_langchain_model_writes_a_whole_synthesis(tmp_path: Path) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage(QUERIES)] * 3))
    llm = LangChainModel(model, name="fake", allow_remote=True, concurrency=1)
    passage = Passage("d", "Body of a text about hay fever and what helps.")
    result = synthesize([passage], llm, journal=tmp_path / "j", kinds=["question"], negatives=False)
    assert [(pair.query, pair.source) for pair in result.pairs] == [
        ("What helps against a runny nose?", "fake")
    ]


def test_a_llama_index_model_gets_the_conversation_or_its_transcript() -> None:
    chat = MockLLMWithChatMemoryOfLastCall(is_chat_model=True)
    LlamaIndexModel(chat, name="mock", allow_remote=True).complete(TALK)
    turns = chat.last_chat_messages or []
    assert [(m.role.value, m.content) for m in turns] == [
        ("user", "hello"),
        ("assistant", "?"),
        ("user", "again"),
    ]
    plain = LlamaIndexModel(MockLLM(), name="mock", allow_remote=True)  # answers with its prompt
    assert plain.complete(REQUEST).text == "hello"
    assert plain.complete(TALK).text == "User: hello\n\nAssistant: ?\n\nUser: again\n\nAssistant:"


def test_a_llama_index_models_name_and_usage_are_read() -> None:
    class Billing(MockLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="tiny-1b")

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return CompletionResponse(
                text="fine", raw={"usage": {"prompt_tokens": 4, "completion_tokens": 2}}
            )

    llm = LlamaIndexModel(Billing(), allow_remote=True)
    completion = llm.complete(REQUEST)
    assert (llm.name, completion.model) == ("tiny-1b", "tiny-1b")
    assert (completion.prompt_tokens, completion.completion_tokens) == (4, 2)


@pytest.mark.parametrize("kind", [LangChainModel, LlamaIndexModel])
def test_what_is_no_such_object_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="has no method"):
        kind("gpt-large", allow_remote=True)


class Addressed:
    """Any object with the method, and an address."""

    def __init__(self, url: str | None) -> None:
        self.base_url = url

    def invoke(self, messages: Any, **options: Any) -> str:
        return "fine"


@pytest.mark.parametrize("url", ["https://llm.example.org/v1", "http://192.168.1.7:8000", None])
def test_an_object_that_may_send_texts_elsewhere_needs_leave(
    url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="allow_remote=True"):
        LangChainModel(Addressed(url))
    with caplog.at_level(logging.WARNING):
        LangChainModel(Addressed(url), allow_remote=True).announce(7)
    assert "The text of 7 documents" in caplog.text
    assert url is None or url.split("/")[2].split(":")[0] in caplog.text


def test_an_object_with_an_address_on_this_machine_needs_none(caplog: pytest.LogCaptureFixture) -> None:
    llm = LangChainModel(Addressed("http://localhost:11434"))
    llm.announce(7)
    assert caplog.text == ""
    assert llm.complete(REQUEST).text == "fine"


class ProviderError(Exception):
    def __init__(
        self, message: str, status: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status_code = status
        self.response = type("Response", (), {"headers": headers or {}})()


class Failing(Addressed):
    def __init__(self, *errors: Exception) -> None:
        super().__init__("http://127.0.0.1")
        self.errors = list(errors)
        self.calls = 0

    def invoke(self, messages: Any, **options: Any) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "fine"


def failing(*errors: Exception, **options: Any) -> tuple[LangChainModel, Failing, list[float]]:
    slept: list[float] = []
    model = Failing(*errors)
    llm = LangChainModel(model, sleep=slept.append, **options)
    llm._pause._clock = lambda: sum(slept)
    return llm, model, slept


def test_errors_that_may_pass_are_asked_again_and_retry_after_is_honoured() -> None:
    llm, model, slept = failing(ProviderError("busy", 429, {"retry-after": "7"}), ProviderError("oops", 500))
    assert llm.complete(REQUEST).text == "fine"
    assert model.calls == 3
    assert slept[0] == 7


def test_errors_never_repeat_the_prompt_and_are_bounded() -> None:
    llm, model, _ = failing(*[ProviderError("prompt was: Patient Doe", 500)] * 9, max_retries=2)
    with pytest.raises(LLMRequestError) as caught:
        llm.complete(REQUEST)
    assert model.calls == 3
    assert caught.value.reason == "ProviderError, HTTP 500"
    assert "Doe" not in str(caught.value)


def test_a_request_that_is_wrong_is_not_repeated() -> None:
    llm, model, _ = failing(ProviderError("too long", 400))
    with pytest.raises(LLMRequestError, match="after 1 tries"):
        llm.complete(REQUEST)
    assert model.calls == 1


@pytest.mark.parametrize("error", [ProviderError("bad key", 401), TypeError("unexpected argument 'seed'")])
def test_what_would_fail_every_time_stops_the_run(error: Exception) -> None:
    llm, model, _ = failing(error)
    with pytest.raises(LLMAccessError):
        llm.complete(REQUEST)
    assert model.calls == 1


def test_tracing_that_the_environment_turned_on_does_not_record_the_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from langsmith.utils import tracing_is_enabled

    seen: list[object] = []

    class Looking(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            seen.append(tracing_is_enabled())
            return "fine"

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGCHAIN_TRACING_V2", "true")
    LangChainModel(Looking(responses=["x"]), allow_remote=True).complete(REQUEST)
    assert seen == [False]


def test_the_wrappers_import_neither_framework() -> None:
    code = (
        "import sys, stm_training.llm.framework_objects\n"
        "assert not {'langchain_core', 'llama_index', 'langsmith'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
