"""From settings to something that completes requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from stm_retriever.errors import DataError
from stm_training.data.records import Passage
from stm_training.llm.base import LLM, Completion, LLMAccessError, Request
from stm_training.llm.budget import Budget, Meter, Prices
from stm_training.llm.local_model import LocalModel
from stm_training.llm.mixture import Mixture
from stm_training.llm.openai_client import OpenAIServer
from stm_training.llm.replay import RECORDED_MODEL, Recording, ReplayServer, read_recordings
from stm_training.llm.settings import GeneratorFields, LLMSection
from stm_training.llm.telemetry import telemetry_off

_NO_KEY = "STM_NO_KEY"  # recorded completions need none, and no key of the user's is sent to them


@dataclass(frozen=True)
class OpenLLM:
    """An LLM that is ready.

    Attributes:
        llm: The model; ``None`` without a section (the extractive generator).
        passages: Those that it can be asked about: all, or the recorded ones.
        meter: Its prices and budget; ``None`` without a model.
        hosts: Where completions come from, for messages.
    """

    llm: LLM | None
    passages: Sequence[Passage]
    meter: Meter | None = None
    hosts: tuple[str, ...] = ()


@contextlib.contextmanager
def open_llm(
    section: LLMSection | None, passages: Sequence[Passage], *, seed: int = 0, sending: bool = True
) -> Iterator[OpenLLM]:
    """Build the LLM of a recipe; servers of recorded completions run inside the context.

    Args:
        section: What the recipe says; ``None``: no model.
        passages: What it will be asked about.
        seed: Of the choice among a mixture's members.
        sending: False for an estimate: servers are named, not connected, and need neither key nor leave.

    Yields:
        The LLM and what belongs to it.

    Raises:
        ConfigError: For a host elsewhere without ``allow_remote``, or unusable settings.
        DataError: If recorded completions are for none of the passages.
        ModelFolderError: If a local model is not there.
    """
    telemetry_off()
    if section is None:
        yield OpenLLM(None, passages)
        return
    members = section.generators()
    recordings = {one.replay: read_recordings(one.replay) for one in members if one.replay is not None}
    for file, recorded in recordings.items():
        passages = _recorded(file, recorded, passages)
    with ExitStack() as stack:
        built: list[tuple[LLM, float]] = []
        prices: dict[str, Prices] = {}
        for one in members:
            llm: LLM
            if one.local_model is not None:
                llm = _local(one)
            elif not sending:
                llm = _Unsent(one.model)
            else:
                url = str(one.base_url)
                if one.replay is not None:
                    documents = {passage.id: passage.content for passage in passages}
                    url = stack.enter_context(ReplayServer(recordings[one.replay], documents)).base_url
                llm = _server(one, url, len(passages), stack)
            built.append((llm, getattr(one, "weight", 1.0)))
            if one.prices is not None:
                prices[llm.name] = Prices(one.prices.input, one.prices.output)
        whole: LLM = built[0][0] if section.mixture is None else Mixture(built, seed=seed)
        limits = section.budget
        budget = None if limits is None else Budget(limits.max_requests, limits.max_tokens, limits.max_cost)
        yield OpenLLM(whole, passages, Meter(budget, prices), tuple(_host(one) for one in members))


@dataclass(frozen=True)
class _Unsent:
    """The name of a server's model, for measuring what would be sent."""

    name: str

    def complete(self, request: Request) -> Completion:
        """Never: it sends nothing."""
        message = f"{self.name} was opened for an estimate only, so nothing is asked of it."
        raise LLMAccessError(message)


def _server(one: GeneratorFields, url: str, documents: int, stack: ExitStack) -> OpenAIServer:
    server = OpenAIServer(
        url,
        one.model,
        api_key_env=_NO_KEY if one.replay is not None else one.api_key_env,
        api_key_file=one.api_key_file if one.replay is None else None,
        timeout=one.timeout,
        max_retries=one.max_retries,
        concurrency=one.concurrency,
        allow_remote=one.allow_remote,
        document_count=documents,
    )
    stack.callback(server.close)
    return server


def _local(one: GeneratorFields) -> LocalModel:
    return LocalModel(
        str(one.local_model),
        revision=one.revision,
        download=one.download,
        device=one.device,
        dtype=one.dtype,
        constrained=one.constrained,
    )


def _recorded(file: str, recordings: dict[str, Recording], passages: Sequence[Passage]) -> Sequence[Passage]:
    found = [passage for passage in passages if passage.id in recordings]
    if not found:
        message = (
            f"{file} holds completions for {len(recordings)} documents, but for none of the {len(passages)} "
            "passages here. Point replay to the recording of this corpus, or set base_url."
        )
        raise DataError(message)
    return found


def _host(one: GeneratorFields) -> str:
    if one.replay is not None:
        return f"recorded completions ({RECORDED_MODEL})" if one.model == RECORDED_MODEL else one.replay
    if one.local_model is not None:
        return f"this process ({one.local_model})"
    return f"{urlsplit(str(one.base_url)).hostname} ({one.model})"
