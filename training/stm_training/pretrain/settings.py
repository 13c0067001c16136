"""The settings of stage 1, unsupervised contrastive pre-training; light enough for recipes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PairKind = Literal["title", "neighbours", "crops"]
Words = tuple[int, int]  # fewest and most


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PairWeights(_Section):
    """How often each kind of pair is drawn, where a document can give several; 0: never."""

    title: float = Field(2.0, ge=0, description="A title and the body under it; once per document.")
    neighbours: float = Field(1.0, ge=0, description="Two passages of a document, one behind the other.")
    crops: float = Field(1.0, ge=0, description="Two random stretches of a document (Contriever).")

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if not self.title + self.neighbours + self.crops > 0:
            message = "title, neighbours and crops are all 0: no pair could be made. Raise one of them."
            raise ValueError(message)
        return self


class PretrainSection(_Section):
    """Contrastive training on pairs from raw text, before the experts (BMRetriever, section 3.1)."""

    corpus: str | None = Field(
        None,
        description="File or folder of raw text: a BEIR folder, JSONL rows of title and text (or abstract), "
        "or text files; null: the recipe's corpus.",
    )
    weights: PairWeights = PairWeights()
    words_per_pair: int = Field(
        50, ge=1, description="A document gives one pair per so many words of its body; at least one."
    )
    title_words: int = Field(3, ge=1, description="Fewest words of a title that is used as a query.")
    body_words: Words = Field(
        (10, 300), description="Fewest and most words of a body under a title; cut at a sentence's end."
    )
    passage_words: Words = Field(
        (10, 100),
        description="Fewest and most words of a neighbouring passage; it ends with its section or paragraph.",
    )
    crop_words: Words = Field((10, 100), description="Fewest and most words of a crop.")
    limit: int | None = Field(
        None, ge=1, description="Stop after so many pairs, in the corpus' order; null: the whole corpus."
    )
    prompt: str | None = Field(
        None, description="Put before these pairs' queries; null: the recipe's query prompt."
    )
    steps: int = Field(500, ge=1, description="Optimiser steps, over as many passes as it takes.")
    batch_size: int = Field(
        64, ge=2, description="Pairs per step; with nothing but in-batch negatives, many."
    )
    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate of AdamW.")
    temperature: float = Field(0.05, gt=0, description="Divides the cosine similarities.")
    max_length: int | None = Field(None, ge=8, description="Tokens a text may have; null: the base's.")

    @model_validator(mode="after")
    def _words_in_order(self) -> Self:
        for name in ("body_words", "passage_words", "crop_words"):
            fewest, most = getattr(self, name)
            if not 1 <= fewest <= most:
                message = (
                    f"{name} is {fewest} to {most}: the first must be at least 1 and not above the second."
                )
                raise ValueError(message)
        return self
