"""The settings of mining, and the presets that published recipes come down to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preset = Literal["band", "refine", "margin", "ranks"]
Miner = Literal["dense", "bm25", "both"]
Mix = Literal["keep", "add", "replace"]
Band = tuple[float | None, float | None]  # lowest and highest; None: no bound on that side

# What each preset sets; a field that is given as well wins.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # In quantiles of the positives' scores, so that it fits every model's scale of similarities. No lower
    # bound: where a model parts positives well, all negatives lie below all positives; ranks bound them.
    "band": {"skip_top": 5, "band_quantiles": (None, 0.25)},
    # REFINE (arXiv 2410.12890): for BGE's scale of similarities, and near relatives of it only.
    "refine": {"skip_top": 5, "band": (0.5, 0.7)},
    # NV-Retriever (arXiv 2407.15831), TopK-PercPos at 95 %, sampling among the ten nearest that remain.
    "margin": {"positive_share": 0.95, "pool": 10},
    "ranks": {"skip_top": 10, "pool": 90},
}


class MineSection(BaseModel):
    """Hard negatives mined from the corpus: near the query, and by these rules not relevant to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset = Field(
        "band",
        description="band: scores below a quantile of the positives' scores, the nearest skipped; refine: "
        "REFINE's band 0.5-0.7, for BGE; margin: below 95 % of the positive's score (NV-Retriever); "
        "ranks: ranks 11 to 100. Fields that are given as well override it.",
    )
    miner: Miner = Field(
        "dense", description="What finds candidates: a model's vectors, BM25, or both, turn by turn."
    )
    num_negatives: int = Field(1, ge=1, description="Negatives per query to mine.")
    skip_top: int = Field(
        0,
        ge=0,
        description="Leave out so many of the nearest candidates: many are relevant, only unlabelled.",
    )
    max_rank: int | None = Field(
        100, ge=1, description="Last rank that is considered; null: the whole corpus."
    )
    band: Band | None = Field(
        None,
        description="Lowest and highest score of a negative, in the model's own scale; null: no bound.",
    )
    band_quantiles: Band | None = Field(
        None, description="The same as quantiles (0 to 1) of the positives' scores under the mining model."
    )
    positive_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A negative scores below this share of its positive: below "
        "positive - (1 - share) * |positive|, which holds for negative scores too. 0.95 in NV-Retriever.",
    )
    absolute_margin: float | None = Field(
        None, ge=0, description="A negative scores below its positive minus this, for instance 0.05."
    )
    pool: int | None = Field(
        None,
        ge=1,
        description="Draw the negatives among so many of the nearest that pass; null: the nearest.",
    )
    mix: Mix = Field(
        "add",
        description="Pairs that have negatives already (an LLM's): keep them and mine only for the others, "
        "add the mined ones behind them, or replace them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        defaults = dict(PRESETS.get(str(given.get("preset", "band")), {}))
        if given.get("band") is not None and "band_quantiles" not in given:
            defaults.pop("band_quantiles", None)
        if given.get("band_quantiles") is not None and "band" not in given:
            defaults.pop("band", None)
        return {**defaults, **given}

    @model_validator(mode="after")
    def _fits_together(self) -> MineSection:
        if self.band is not None and self.band_quantiles is not None:
            raise ValueError("band and band_quantiles are both set; set one of them to null.")
        _check_band("band", self.band)
        _check_band("band_quantiles", self.band_quantiles)
        if any(edge is not None and not 0 <= edge <= 1 for edge in self.band_quantiles or ()):
            raise ValueError(f"band_quantiles is {self.band_quantiles}; quantiles lie between 0 and 1.")
        self._check_room()
        if self.miner == "bm25" and (self.band is not None or self.absolute_margin is not None):
            raise ValueError(
                "band and absolute_margin are meant for cosine similarities, and BM25's scores have no fixed "
                "scale. With miner: bm25 use band_quantiles, positive_share or ranks."
            )
        return self

    def _check_room(self) -> None:
        if self.pool is not None and self.pool < self.num_negatives:
            raise ValueError(
                f"num_negatives is {self.num_negatives}, but they are drawn among {self.pool} (pool). "
                "Raise pool or ask for fewer."
            )
        room = None if self.max_rank is None else self.max_rank - self.skip_top
        if room is not None and room < self.num_negatives:
            raise ValueError(
                f"num_negatives is {self.num_negatives}, but ranks {self.skip_top + 1} to {self.max_rank} "
                f"hold {max(room, 0)} candidates. Raise max_rank, lower skip_top, or ask for fewer."
            )

    @property
    def pool_size(self) -> int:
        """How many candidates that pass the rules are kept per query, to draw from."""
        return self.num_negatives if self.pool is None else self.pool


def _check_band(name: str, band: Band | None) -> None:
    if band is None:
        return
    low, high = band
    if low is None and high is None:
        raise ValueError(f"{name} has no bound on either side; set it to null, or give one.")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"{name} is {low} to {high}: the first must be the lower one.")
