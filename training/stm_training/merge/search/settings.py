"""The settings of a search over merges."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stm_training.merge.recipe import Method

Sampler = Literal["random", "tpe", "cmaes", "grid", "greedy"]


class SearchSection(BaseModel):
    """Which merges are tried on the development queries, in which order, and when a try is ended early."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[Method, ...] = Field(
        ("task_arithmetic", "ties"),
        min_length=1,
        description="Merge methods to try; linear is task_arithmetic with weights that sum to 1.",
    )
    sampler: Sampler = Field(
        "grid",
        description="grid: the listed weights and densities, a seeded sample where it is larger; "
        "random, tpe, cmaes: anything between the lowest and the highest; greedy: the greedy soup, which "
        "takes two trials per expert and no settings.",
    )
    trials: int = Field(
        12,
        ge=1,
        description="Merges to try; raising it later continues the search. greedy has its own number.",
    )
    weights: tuple[float, ...] = Field(
        (0.0, 0.3, 0.5, 0.7, 0.9),
        min_length=1,
        description="Weights that an expert may get (the paper's grid is 0 to 0.9).",
    )
    base_weights: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="linear, slerp: weights that the untouched base may get as a member.",
    )
    densities: tuple[float, ...] = Field(
        (0.3, 0.5, 0.7), min_length=1, description="Densities, for the methods that have one."
    )
    density_per_expert: bool = Field(False, description="Give every expert a density of its own.")
    gammas: tuple[float, ...] = Field(
        (0.01,), min_length=1, description="breadcrumbs: shares of the largest changes that are dropped."
    )
    base_slerps: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Points between the base (0) and the experts (1) to move each to before the merge.",
    )
    depth_slopes: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="Weights go from (1 - slope) times themselves in the first layer to (1 + slope) times in "
        "the last.",
    )
    guard_penalty: float = Field(
        2.0,
        ge=0,
        description="Taken off the objective, in points, per point that a guard loses beyond max_guard_loss.",
    )
    max_guard_loss: float | None = Field(
        None,
        ge=0,
        description="Loss on a guard that costs nothing, in nDCG@10 points (0-100); null: the recipe's "
        "evaluate.max_guard_loss.",
    )
    cocktail_examples: int = Field(
        0,
        ge=0,
        description="LM-Cocktail: also try the linear merge whose weights follow from the members' losses on "
        "so many development queries (the paper takes 5 examples); 0: not tried.",
    )
    fusion_curve: bool = Field(
        False,
        description="Also score fused vectors of the base and the best merge by lambda (REFINE), for the "
        "report: what two encoders at run time would give.",
    )
    processes: int = Field(1, ge=1, description="Processes that work on the search; each holds a model.")
    storage: str | None = Field(
        None,
        description="SQLite file of Optuna, readable by its dashboard; null: in the run's scratch folder.",
    )
    seed: int | None = Field(None, ge=0, description="null: the recipe's seed.")
    surrogate: bool = Field(
        False,
        description="grid, random: rank candidates by the weighted sum of the experts' own vectors. "
        "Used only while it is right: see surrogate_correlation.",
    )
    surrogate_pool: int = Field(8, ge=2, description="Candidates among which the surrogate picks the next.")
    surrogate_trials: int = Field(
        6, ge=4, description="Exact trials of a method before its surrogate may be used."
    )
    surrogate_correlation: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Smallest rank correlation (Spearman) of predicted and exact objective, over a method's "
        "trials so far, at which the surrogate is used; below it, candidates come in their own order.",
    )
    pruning: bool = Field(
        True, description="End a trial early when it is surely worse than the best one so far."
    )
    prune_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Share of the queries, and of the other documents, that a trial is first judged on.",
    )
    prune_confidence: float = Field(
        0.975, gt=0.5, lt=1, description="How sure (one-sided) that a trial is worse before it is ended."
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        for name, values in (("weights", self.weights), ("base_weights", self.base_weights)):
            if min(values) < 0:
                message = f"{name} must be 0 or more, found {min(values):g}"
                raise ValueError(message)
        if max(self.weights) == 0:
            message = "weights holds nothing above 0: every merge would be the base"
            raise ValueError(message)
        if self.cocktail_examples == 1:
            message = "cocktail_examples is 1, but one example alone has no other to be told from: 2 or more"
            raise ValueError(message)
        if not all(0 < density <= 1 for density in self.densities):
            message = f"densities must be above 0 and at most 1, found {self.densities}"
            raise ValueError(message)
        if not all(0 <= gamma < 1 for gamma in self.gammas):
            message = f"gammas must be 0 or more and below 1, found {self.gammas}"
            raise ValueError(message)
        if not all(0 < position <= 1 for position in self.base_slerps):
            message = f"base_slerps must be above 0 and at most 1 (the expert), found {self.base_slerps}"
            raise ValueError(message)
        if not all(-1 < slope < 1 for slope in self.depth_slopes):
            message = f"depth_slopes must lie between -1 and 1, found {self.depth_slopes}"
            raise ValueError(message)
        return self
