"""What the filters of training pairs may be told; light enough for recipes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RetrieverChoice = Literal["auto", "bm25", "dense", "both", "either"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextFilterSection(_Section):
    """Each query on its own: empty, refusing, "this passage", copied, too short or too long."""

    enabled: bool = Field(True, description="Apply these filters.")
    shortest: int = Field(2, ge=1, description="Fewest words of a query.")
    longest: int = Field(80, ge=1, description="Most words of a query.")
    shortest_positive: int = Field(
        0, ge=0, description="Fewest words of a positive; drops captions and other fragments. 0: any."
    )
    copied_run: int = Field(
        10, ge=2, description="A run of so many words that also stands in the positive is copied."
    )
    copied_whole: int = Field(
        6, ge=2, description="A query of at least so many words, all standing in the positive, is copied."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.longest < self.shortest:
            message = f"longest is {self.longest}, below shortest {self.shortest}: nothing could pass"
            raise ValueError(message)
        return self


class DuplicateFilterSection(_Section):
    """Queries that say what another training query, or a held-out query, says already."""

    enabled: bool = Field(True, description="Apply these filters.")
    similarity: float = Field(
        0.8, gt=0, le=1, description="Drop a query whose words overlap an earlier one's so much (Jaccard)."
    )
    held_out_similarity: float = Field(
        0.8, gt=0, le=1, description="Drop a query that overlaps a development or test query so much."
    )


class LanguageFilterSection(_Section):
    """Queries in another language than their document (py3langid); undecided ones are kept."""

    enabled: bool = Field(True, description="Apply this filter.")
    confidence: float = Field(
        0.8, gt=0, le=1, description="How sure the detector must be, of the query and of the document."
    )
    shortest: int = Field(20, ge=1, description="Characters below which a query's language is not judged.")


class RoundTripFilterSection(_Section):
    """Keep a query only if a retriever brings its source back (BMRetriever, CADET)."""

    enabled: bool = Field(True, description="Apply this filter.")
    retriever: RetrieverChoice = Field(
        "auto",
        description="auto: the model if there is one, else BM25; both: both must find the source; "
        "either: one suffices. BM25 stems English.",
    )
    k: int = Field(20, ge=1, description="The source must be among so many passages (CADET: 20).")


class RerankerFilterSection(_Section):
    """Keep a query only if a cross-encoder puts its source first among the top candidates (CADET)."""

    enabled: bool = Field(False, description="Apply this filter.")
    model: str | None = Field(
        None, description="Folder (or cached hub name) of a cross-encoder, as transformers reads it."
    )
    candidates: int = Field(10, ge=1, description="Other passages that the source is ranked among.")
    max_length: int | None = Field(
        None, ge=16, description="Tokens per query and passage; null: the model's."
    )
    token_budget: int = Field(8192, ge=1, description="Padded tokens of a forward pass.")


class NegativeFilterSection(_Section):
    """Negatives that are too close to a positive; the negative is dropped, not the pair."""

    enabled: bool = Field(True, description="Apply these filters.")
    overlap: float = Field(
        0.8, gt=0, le=1, description="Drop a negative whose words overlap the positive's more (Jaccard)."
    )
    shortest: int = Field(1, ge=1, description="Fewest words of a negative.")
    margin: Literal["relative", "absolute", "off"] = Field(
        "relative",
        description="How near the positive's similarity to the query a negative's may come; off: texts only.",
    )
    relative: float = Field(
        0.95,
        gt=0,
        le=1,
        description="relative: a negative may reach this share of the positive's similarity.",
    )
    absolute: float = Field(
        0.05, ge=0, description="absolute: a negative must stay so far below the positive's similarity."
    )


class FilterSection(_Section):
    """What is dropped from the training pairs, from the cheapest filter to the dearest."""

    text: TextFilterSection = TextFilterSection()
    duplicates: DuplicateFilterSection = DuplicateFilterSection()
    language: LanguageFilterSection = LanguageFilterSection()
    negatives: NegativeFilterSection = NegativeFilterSection()
    round_trip: RoundTripFilterSection = RoundTripFilterSection()
    reranker: RerankerFilterSection = RerankerFilterSection()
    spare: tuple[str, ...] = Field(
        ("labelled", "aiano"),
        description="Sources whose queries people wrote: only held-out queries are dropped from them.",
    )
    most_dropped: float = Field(
        0.9, gt=0, le=1, description="A filter that drops more of the pairs than this is an error."
    )
