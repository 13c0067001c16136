"""Where completions come from, as a recipe says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PATHS = ("replay", "api_key_file")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PricesSection(_Section):
    """What a model costs, per million tokens, in any one currency."""

    input: float = Field(ge=0, description="Per million prompt tokens.")
    output: float = Field(ge=0, description="Per million completion tokens.")


class BudgetSection(_Section):
    """Hard limits over all runs that share a journal; what is not asked is listed, a higher limit goes on."""

    max_requests: int | None = Field(None, ge=1, description="Completions asked for.")
    max_tokens: int | None = Field(None, ge=1, description="Prompt and completion tokens together.")
    max_cost: float | None = Field(None, gt=0, description="In the currency of the prices.")


class GeneratorFields(_Section):
    """What every generator has, alone or in a mixture."""

    base_url: str | None = Field(
        None, description="For instance http://127.0.0.1:8000/v1 (vLLM, Ollama, ...)."
    )
    model: str = Field("recorded", description="Model name as the server knows it.")
    replay: str | None = Field(None, description="JSONL of recorded completions, served on loopback instead.")
    local_model: str | None = Field(
        None, description="Folder or cached hub name of a causal language model, run in this process instead."
    )
    revision: str | None = Field(None, description="Revision of a local_model given by hub name.")
    download: bool = Field(False, description="Allow a download of a local_model that is not in the cache.")
    device: str = Field("cpu", description="Where a local_model runs: cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of a local_model's weights; auto: as stored."
    )
    constrained: bool = Field(
        True, description="Hold a local_model to the answer's JSON schema while it writes."
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key.")
    api_key_file: str | None = Field(
        None, description="File whose first line is the key; wins over the variable."
    )
    allow_remote: bool = Field(False, description="Must be true before texts leave this machine.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests in flight.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for one answer.")
    max_retries: int = Field(
        6, ge=0, description="How often a request is repeated after an error that may pass."
    )
    prices: PricesSection | None = Field(None, description="null: unknown; needed for budget.max_cost.")

    def sources(self) -> list[str]:
        """Which of the places that completions may come from are given."""
        return [name for name in ("base_url", "replay", "local_model") if getattr(self, name) is not None]


class GeneratorSection(GeneratorFields):
    """One generator of a mixture."""

    weight: float = Field(1.0, gt=0, description="Its share of the tasks is weight / sum of weights.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len(self.sources()) != 1:
            message = (
                f"give exactly one of base_url, replay and local_model, found {self.sources() or 'none'}"
            )
            raise ValueError(message)
        return self


class LLMSection(GeneratorFields):
    """Where completions come from: a server, a local model, recorded completions, or a mixture of them."""

    mixture: tuple[GeneratorSection, ...] | None = Field(
        None, description="Several generators instead, each with the keys above and a weight."
    )
    temperature: float = Field(0.7, ge=0, description="Sampling temperature of the LLM.")
    budget: BudgetSection | None = Field(None, description="null: no limit.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = self.sources() + (["mixture"] if self.mixture else [])
        if len(given) != 1:
            message = (
                "give exactly one of base_url (a server), local_model (a folder), replay (a file of recorded "
                f"completions) and mixture (several of these), found {given or 'none'}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _prices_for_a_cost_limit(self) -> Self:
        if self.budget is not None and self.budget.max_cost is not None:
            unpriced = [one.model for one in self.generators() if one.base_url and one.prices is None]
            if unpriced:
                message = f"budget.max_cost needs prices (input, output) of {', '.join(unpriced)}"
                raise ValueError(message)
        return self

    def generators(self) -> tuple[GeneratorFields, ...]:
        """The members of the mixture, or this one alone."""
        return self.mixture or (self,)


def with_paths(section: LLMSection, absolute: Callable[[str], str]) -> LLMSection:
    """The section with its paths made absolute; a ``local_model`` only where it looks like a path."""
    changes = _path_changes(section, absolute)
    if section.mixture is not None:
        changes["mixture"] = tuple(
            one.model_copy(update=_path_changes(one, absolute)) for one in section.mixture
        )
    return section.model_copy(update=changes)


def _path_changes(one: GeneratorFields, absolute: Callable[[str], str]) -> dict[str, Any]:
    changes = {name: absolute(value) for name in _PATHS if (value := getattr(one, name)) is not None}
    if one.local_model is not None and one.local_model.startswith((".", "/", "~")):
        changes["local_model"] = absolute(one.local_model)
    return changes
