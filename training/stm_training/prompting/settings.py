"""What a recipe may say about the search for a query prompt."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# No torch here: recipes and light commands read these settings.
INSTRUCTION = "{instruction}"


class GepaSection(BaseModel):
    """GEPA (arXiv 2507.19457): an LLM rewrites the instruction after seeing which queries fail, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric_calls: int = Field(
        1000, ge=1, description="Budget: scored queries, over all prompts; the last round may go over it."
    )
    minibatch: int = Field(5, ge=1, description="Queries that one reflection sees (the paper's: 3, 5 or 8).")
    max_queries: int = Field(
        100, ge=2, description="Development queries that GEPA works on, a seeded sample of the search half."
    )
    max_reflections: int = Field(40, ge=1, description="Most instructions that the LLM is asked for.")
    temperature: float = Field(0.7, ge=0, description="Sampling temperature of the LLM.")


class PromptSearchSection(BaseModel):
    """Which query prompts are tried on the development queries; the model's own always is one of them.

    One half of the development queries ranks the candidates (GEPA sees this half alone); the best few are
    then tested against the plain prompt on the other half, paired, with the level shared among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: str | None = Field(None, description="Text file with one instruction per line.")
    prompts: tuple[str, ...] = Field((), description="Instructions to try, given here.")
    random: int = Field(0, ge=0, description="Also try so many of the generic prompts that we ship.")
    gepa: GepaSection | None = Field(None, description="Let an LLM write instructions; needs an LLM.")
    template: str | None = Field(
        None,
        description="How an instruction becomes a prompt, with {instruction} in it; null: like the model's "
        "own prompt, else '{instruction}\\nQuery: '.",
    )
    train_prompts: int = Field(
        0, ge=0, description="Train with so many generic prompts, one drawn per training query; 0: off."
    )
    finalists: int = Field(3, ge=1, description="Candidates that are tested on the second half.")
    decide_fraction: float = Field(
        0.5, gt=0, lt=1, description="Share of the development queries kept for the test."
    )
    level: float = Field(0.95, gt=0, lt=1, description="Coverage of the intervals, over all finalists.")
    bootstrap_samples: int = Field(10_000, ge=100, description="Resamples of the paired bootstrap.")
    max_characters: int = Field(300, ge=10, description="Longest prompt that the linter lets pass.")

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str | None) -> str | None:
        if value is not None and value.count(INSTRUCTION) != 1:
            message = f"the template {value!r} must hold {INSTRUCTION} exactly once"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _budget_for_a_round(self) -> Self:
        gepa = self.gepa
        if gepa is not None and gepa.metric_calls < gepa.max_queries + 2 * gepa.minibatch:
            message = (
                f"gepa.metric_calls is {gepa.metric_calls}, but scoring the plain prompt on max_queries "
                f"({gepa.max_queries}) and one new prompt on a minibatch (2 x {gepa.minibatch}) takes "
                f"{gepa.max_queries + 2 * gepa.minibatch}: raise the budget or lower max_queries"
            )
            raise ValueError(message)
        return self

    @property
    def is_search(self) -> bool:
        """Whether there is anything to try beside the plain prompt."""
        return bool(self.candidates or self.prompts or self.random or self.gepa)
