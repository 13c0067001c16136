"""What is written from the documents, as a recipe says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stm_training.llm.settings import LLMSection, with_paths
from stm_training.synthesize.hard_negatives import DEFAULT_INSTRUCTION
from stm_training.synthesize.queries import Sampling
from stm_training.synthesize.styles import FEW_SHOT, Difficulty, Style, read_queries
from stm_training.synthesize.tasks import Invention

QueryKind = Literal["question", "claim", "title", "keywords", "long", "few_shot", "sentence"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TasksSection(_Section):
    """Pairs that the LLM invents without documents: retrieval tasks of a domain, then examples of each."""

    domain: str = Field(min_length=1, description="In words: 'rheumatology, for patients and nurses'.")
    tasks: int = Field(20, ge=1, description="How many retrieval tasks.")
    pairs_per_task: int = Field(10, ge=1, description="How many pairs of each.")
    prompt: str | None = Field(
        None, description="Instruction kept with each pair, for instance '{task}\\nQuery: '; null: none."
    )

    def invention(self) -> Invention:
        """The same, as the generator takes it."""
        return Invention(self.domain, self.tasks, self.pairs_per_task, self.prompt)


class SynthesizeSection(_Section):
    """Training queries and hard negatives written from the documents alone."""

    llm: LLMSection | None = Field(None, description="null: the extractive generator, which needs no LLM.")
    kinds: tuple[QueryKind, ...] | None = Field(
        None, description="null: question, claim, keywords of an LLM; title, keywords, sentence without one."
    )
    hard_negatives: bool = Field(
        False,
        description="Also let the LLM write one hard negative per document; in short trainings they gained "
        "nothing (benchmarks/RESULTS.md).",
    )
    max_documents: int | None = Field(None, ge=1, description="Use a seeded sample of the documents.")
    per_kind: int = Field(1, ge=1, le=20, description="Queries of each kind per document.")
    max_tokens: int = Field(512, ge=16, description="Longest answer of the LLM, in tokens.")
    instruction: str = Field(
        DEFAULT_INSTRUCTION, description="The retrieval task, for the prompt that asks for hard negatives."
    )
    sample_queries: str | None = Field(
        None, description="File with queries of your own (a line each, or JSONL): kind few_shot copies them."
    )
    personas: tuple[str, ...] = Field(
        (), description="Who asks, for instance 'a nurse on a night shift'; drawn per document and kind."
    )
    difficulty: tuple[Difficulty, ...] = Field(
        (), description="easy, medium, hard: how far queries are from the text; drawn like personas."
    )
    templates: str | None = Field(
        None, description="Folder with changed prompts; see stm-train synthesize --write-templates."
    )
    max_reasks: int = Field(2, ge=0, description="How often an unusable answer is put back to the LLM.")
    tasks: TasksSection | None = Field(None, description="null: no invented pairs.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.tasks is not None and self.llm is None:
            message = "tasks are invented by an LLM, so llm is needed"
            raise ValueError(message)
        if FEW_SHOT in (self.kinds or ()) and self.sample_queries is None:
            message = "kind few_shot writes in the style of your own queries: name a file in sample_queries"
            raise ValueError(message)
        return self

    def options(self, *, seed: int) -> dict[str, Any]:
        """Arguments that :func:`.run.synthesize` and :func:`.estimate.estimate` share.

        Raises:
            ConfigError: If the file of sample queries cannot be read.
        """
        return {
            "kinds": self.kinds,
            "negatives": self.hard_negatives,
            "seed": seed,
            "sampling": self.sampling(),
            "style": self.style(),
            "instruction": self.instruction,
            "templates": self.templates,
            "max_reasks": self.max_reasks,
        }

    def sampling(self) -> Sampling:
        """How the model is asked."""
        temperature = Sampling().temperature if self.llm is None else self.llm.temperature
        return Sampling(temperature, self.max_tokens, self.per_kind)

    def style(self) -> Style:
        """Personas, difficulties and sample queries."""
        samples = () if self.sample_queries is None else read_queries(self.sample_queries)
        return Style(self.personas, self.difficulty, samples)


def with_absolute_paths(section: SynthesizeSection, absolute: Callable[[str], str]) -> SynthesizeSection:
    """The section with its paths made absolute, those of its LLM too."""
    changes: dict[str, Any] = {
        name: absolute(value)
        for name in ("sample_queries", "templates")
        if (value := getattr(section, name)) is not None
    }
    if section.llm is not None:
        changes["llm"] = with_paths(section.llm, absolute)
    return section.model_copy(update=changes)
