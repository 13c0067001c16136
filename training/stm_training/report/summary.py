"""What a run found, as typed records: the one source of its table, its JSON file and its report."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stm_training.evaluate.compare import SystemResult
from stm_training.evaluate.pairs import PairComparison
from stm_training.evaluate.selection import Decision
from stm_training.merge.fusion import FusionCurve

ProvenOn = Literal["user queries", "synthetic queries only"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class DataSummary(_Record):
    """What was trained, chosen and tested on."""

    corpus: str = Field(description="Name or path of the corpus.")
    documents: int = Field(ge=0, description="Documents read.")
    passages: int = Field(ge=0, description="Passages after splitting.")
    train_pairs: dict[str, int] = Field(default_factory=dict, description="Kind of pair: how many.")
    dev_queries: int = Field(0, ge=0, description="Queries that chose what ships.")
    test_queries: int = Field(0, ge=0, description="Queries scored once, at the end.")
    guards: dict[str, int] = Field(default_factory=dict, description="Guard set: development queries.")
    truncated: int = Field(0, ge=0, description="Passages longer than the model's maximum.")
    sources: dict[str, str] = Field(
        default_factory=dict, description="Collection: where it comes from, licence."
    )


class ExpertSummary(_Record):
    """One trained model: an expert, or all data at once."""

    name: str
    kinds: tuple[str, ...] = ()
    pairs: int = Field(ge=0)
    steps: int = Field(ge=0)
    batch_size: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float | None = None
    best_step: int | None = Field(None, description="Whose weights were kept, by dev; None: the last.")
    history: tuple[dict[str, Any], ...] = Field((), description="A record per step and per scoring.")


class MergeSummary(_Record):
    """The merge that was the best of those tried on the development queries."""

    method: str
    weights: dict[str, float] = Field(description="Member: weight; the base may be one.")
    density: float | None = None
    trials: int = Field(0, ge=0, description="Merges tried.")


class CandidateSummary(_Record):
    """One system on the development queries: a point of the domain-against-general plot."""

    name: str
    kind: Literal["base", "expert", "all_data", "merge"]
    domain: float = Field(description="Mean nDCG@10 over development sets.")
    general: float = Field(description="Mean nDCG@10 over the guards' development halves.")
    worst_guard_loss: float = Field(0.0, description="Largest loss on a guard, in points (0-100).")
    on_front: bool = Field(False, description="No other candidate beats it on both.")
    chosen: bool = False


class ParitySummary(_Record):
    """How far the ONNX file's vectors are from the torch model's."""

    rows: int = Field(ge=0, description="Padded rows compared, each with the same text alone.")
    max_abs_diff: float
    min_cosine: float
    tolerance: float | None = Field(None, description="Largest absolute difference that passes.")


class DroppedExample(_Record):
    """One synthetic query that a filter dropped."""

    cause: str
    text: str


class SynthesisSummary(_Record):
    """What the generator wrote and what was kept of it."""

    generator: str = Field(description="Name of the LLM, of the recording, or 'extractive'.")
    documents: int = Field(0, ge=0)
    written: int = Field(0, ge=0)
    kept: dict[str, int] = Field(default_factory=dict, description="Kind: pairs kept.")
    negatives: int = Field(0, ge=0)
    dropped: dict[str, int] = Field(default_factory=dict, description="Cause: how many.")
    examples: tuple[DroppedExample, ...] = ()
    failures: int = Field(0, ge=0, description="Requests that gave no usable answer.")


class LeakExample(_Record):
    """A test text and the training text that it is nearly the same as."""

    test: str
    train: str
    similarity: float


class LeakageSummary(_Record):
    """Training queries that are also development or test queries."""

    train_queries: int = Field(0, ge=0)
    checked_against: int = Field(0, ge=0, description="Development and test queries.")
    exact: int = Field(0, ge=0)
    normalised: int = Field(0, ge=0, description="Equal after case, accents and punctuation are gone.")
    dropped: int = Field(0, ge=0, description="Training pairs left out because of it.")
    near: int | None = Field(
        None, ge=0, description="Test queries that are nearly one; None: not looked for."
    )
    near_documents: int | None = Field(
        None, ge=0, description="Test documents that training documents are, or nearly are; None: likewise."
    )
    threshold: float | None = Field(None, description="Jaccard similarity that counts as nearly the same.")
    examples: tuple[LeakExample, ...] = Field((), description="Some of the pairs, to read.")


class NegativeScores(_Record):
    """Scores of mined negatives, as counts between common edges."""

    model: str = Field(description="Whose scores.")
    edges: tuple[float, ...]
    positives: tuple[int, ...]
    kept: tuple[int, ...]
    rejected: tuple[int, ...]

    @model_validator(mode="after")
    def _counts_lie_between_edges(self) -> Self:
        for name in ("positives", "kept", "rejected"):
            if len(getattr(self, name)) != len(self.edges) - 1:
                message = f"{name} has {len(getattr(self, name))} counts for {len(self.edges)} edges"
                raise ValueError(message)
        return self


class QueryExample(_Record):
    """One test query that what ships answers better or worse than the base."""

    query: str
    before: float = Field(description="nDCG@10 of the base.")
    after: float = Field(description="nDCG@10 of what ships.")
    relevant: tuple[str, ...] = Field((), description="How its relevant documents begin.")


class QueryChanges(_Record):
    """Test queries one by one: what ships against the base."""

    wins: int = Field(ge=0)
    losses: int = Field(ge=0)
    ties: int = Field(ge=0)
    gains: tuple[QueryExample, ...] = Field((), description="The largest gains, the largest first.")
    drops: tuple[QueryExample, ...] = Field((), description="The largest losses, the largest first.")


class VariantSpeed(_Record):
    """How fast one ONNX file encodes, after one warm-up."""

    query_ms: float = Field(description="Median time of one query alone, in milliseconds.")
    documents_per_s: float = Field(description="Documents encoded per second, in batches.")
    queries: int = Field(ge=1, description="Queries timed.")
    documents: int = Field(ge=1, description="Documents timed.")


class SpeedSummary(_Record):
    """One measurement of the variants, beside whatever else ran on the machine."""

    cpu: str = Field(description="The processor's name.")
    threads: int = Field(ge=1, description="Threads that a call may use.")
    variants: dict[str, VariantSpeed] = Field(default_factory=dict, description="By variant.")


class VariantSummary(_Record):
    """One ONNX file of the retriever folder."""

    name: str
    size: int = Field(ge=0, description="Bytes, weight files included.")
    min_cosine: float | None = Field(None, description="Lowest cosine to the model's own vectors.")
    dev_points: float | None = Field(None, description="Change of nDCG@10 on development queries, in points.")


class GuardSummary(_Record):
    """What the untouched base and the shipped model score on a guard's test half."""

    name: str
    scores: dict[str, float] = Field(description="System: mean nDCG@10, between 0 and 1.")


class SetSummary(_Record):
    """What every system scores on one collection's test queries, where there are several collections."""

    name: str
    scores: dict[str, float] = Field(description="System: mean nDCG@10, between 0 and 1.")


class SkippedLine(_Record):
    """A row of the user's data that was left out on request."""

    file: str
    line: int
    cause: str


class RunSummary(_Record):
    """Everything a run shows. Scores lie between 0 and 1; tables show differences in points (0-100)."""

    name: str
    verdict: str = Field(description="One sentence: what ships and how sure that is.")
    shipped: str
    proven_on: ProvenOn
    systems: dict[str, SystemResult] = Field(description="Figures on the test queries.")
    comparisons: tuple[PairComparison, ...] = Field(
        (), description="On the test queries: what ships, and the merge, against the others."
    )
    contradiction: str | None = Field(None, description="Set where the test queries contradict the choice.")
    selection: Decision | None = None
    seconds: dict[str, float] = Field(default_factory=dict, description="Stage: seconds.")
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    base_model: str = ""
    data: DataSummary | None = None
    experts: tuple[ExpertSummary, ...] = ()
    merge: MergeSummary | None = None
    candidates: tuple[CandidateSummary, ...] = Field((), description="Scored on dev and guards in full.")
    fusion: FusionCurve | None = Field(None, description="Fused vectors by lambda, on development queries.")
    parity: ParitySummary | None = None
    synthesis: SynthesisSummary | None = None
    leakage: LeakageSummary | None = None
    sets: tuple[SetSummary, ...] = Field((), description="Collections that the figures are the mean of.")
    guards: tuple[GuardSummary, ...] = ()
    query_changes: QueryChanges | None = Field(None, description="Test queries, shipped against base.")
    negatives: NegativeScores | None = Field(None, description="Of mined hard negatives, if any.")
    variants: tuple[VariantSummary, ...] = Field((), description="The retriever folder's ONNX files.")
    speed: SpeedSummary | None = Field(None, description="Of the variants, on the run's machine.")
    served_ndcg10: float | None = Field(None, description="nDCG@10 of the answers from the index folder.")
    skipped_rows: tuple[SkippedLine, ...] = ()
    notice: str | None = None
    recipe_yaml: str = ""

    def figures(self) -> dict[str, Any]:
        """What ``--json FILE`` holds: systems, shipped, seconds, versions, seed, and nothing else."""
        return {
            "systems": {name: result.figures() for name, result in self.systems.items()},
            "shipped": self.shipped,
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "seed": self.seed,
        }
