"""What a search keeps: scores per query, trials, and the result as it is written to JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from stm_training.merge.recipe import MergeRecipe

QueryScores = Mapping[str, Mapping[str, float]]
"""Collection -> query id -> nDCG@10 between 0 and 1."""

Stage = Literal["part", "dev", "all"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialScores(_Record):
    """What one candidate scores, query by query, so that the choice can use paired tests.

    Development queries only: there is no field for test queries.
    """

    dev: QueryScores = Field(default_factory=dict, description="Development sets; all their queries.")
    guards: QueryScores = Field(default_factory=dict, description="Development halves of the guards.")
    part: QueryScores = Field(
        default_factory=dict,
        description="A part of each development set's queries, ranked against a part of its documents.",
    )
    stage: Stage = Field("all", description="How far the scoring went: part, dev, or all (guards too).")
    stopped: str = Field("", description="Why it was ended early; empty if it was not.")
    seconds: float = Field(0.0, ge=0, description="Time that the scoring took.")

    @property
    def complete(self) -> bool:
        """Whether every query was scored."""
        return self.stage == "all"


StopEarly = Callable[[TrialScores], str]
"""Called between stages with the scores so far; a reason ends the trial, an empty string does not."""


class Evaluate(Protocol):
    """Scores a candidate on development queries; ``None`` is the untouched base."""

    def __call__(self, recipe: MergeRecipe | None, stop: StopEarly | None = None) -> TrialScores:
        """Score ``recipe``; where ``stop`` gives a reason, return what is scored with it as ``stopped``."""


class Trial(_Record):
    """One merge that was tried.

    Scores are between 0 and 1, losses in points (0-100).
    """

    number: int = Field(ge=0, description="Place in the order in which the trials were begun.")
    recipe: MergeRecipe
    value: float | None = Field(description="The objective; None if the trial was ended early.")
    scores: TrialScores
    domain: float | None = Field(None, description="Mean over development sets; None if ended before.")
    general: float | None = Field(None, description="Mean over guards; None without guards.")
    guard_losses: dict[str, float] = Field(
        default_factory=dict, description="Guard: points lost to the base."
    )
    predicted: float | None = Field(None, description="The surrogate's objective.")
    chosen_by_surrogate: bool = False
    reused: bool = Field(False, description="The same merge had been scored before.")
    seconds: float = Field(0.0, ge=0)

    @property
    def pruned(self) -> bool:
        """Whether it was ended early."""
        return self.value is None

    @property
    def worst_guard_loss(self) -> float:
        """Largest loss on a guard, in points; negative where all gain, 0 without guards."""
        return max(self.guard_losses.values(), default=0.0)


class SurrogateReport(_Record):
    """How well the experts' vectors predicted the merged models, and what that was used for."""

    trials: int = Field(description="Exact trials that it was compared with.")
    spearman: float | None = Field(description="Rank correlation over all of them; None if undefined.")
    by_method: dict[str, tuple[int, float | None]] = Field(description="Method: trials, rank correlation.")
    threshold: float = Field(description="Smallest correlation at which it is used.")
    needed: int = Field(description="Exact trials of a method before it may be used.")
    used: int = Field(description="Trials whose candidate it picked.")
    trusted: tuple[str, ...] = Field(description="Methods that it would be used for now.")
    mean_error: float | None = Field(description="Mean absolute difference of the objectives (0-1).")


class SearchResult(_Record):
    """A finished search."""

    trials: tuple[Trial, ...]
    base: TrialScores
    best: int | None = Field(
        description="Index of the highest objective; None if every trial was ended early."
    )
    pareto: tuple[int, ...] = Field(description="Indices of the Pareto set, by domain score, highest first.")
    surrogate: SurrogateReport | None = None
    seconds: float = Field(ge=0, description="Sum of the trials' own times, the base's included.")
    pruned: int = Field(ge=0, description="Trials ended early.")
    storage: str = Field("", description="The SQLite file.")
    study: str = Field("", description="The study's name in it.")

    @property
    def best_trial(self) -> Trial | None:
        """The trial with the highest objective."""
        return None if self.best is None else self.trials[self.best]

    @property
    def pareto_trials(self) -> tuple[Trial, ...]:
        """The Pareto set, by domain score, highest first."""
        return tuple(self.trials[index] for index in self.pareto)


def recipe_key(recipe: MergeRecipe | None) -> str:
    """A short name of a merge; the order of experts is part of it, since slerp goes through them in turn."""
    if recipe is None:
        return "base"
    text = json.dumps(recipe.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
