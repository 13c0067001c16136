"""From training rows to token ids, cut into micro-batches of like length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import torch

from stm_retriever.errors import TrainingError
from stm_retriever.folder import Prompts
from stm_retriever.tokenization import Ids, TextTokenizer
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.gather import Ranks
from stm_training.finetune.losses import Labels
from stm_training.finetune.micro_batches import MicroBatch, cut
from stm_training.finetune.pair_keys import false_negatives, known_positives, text_key


class Batch(TypedDict):
    """One step: its texts are b queries, b positives, then the m hard negatives row by row.

    ``micro_batches`` hold this process's share of them, ``labels`` are of all rows, and ``texts`` is how many
    texts there are over all processes (2 b + m).
    """

    micro_batches: list[MicroBatch]
    labels: Labels
    texts: int


class Collator:
    """Tokenises rows exactly as serving will, and pads only among texts of like length.

    Args:
        backbone: Gives tokenizer and prompts.
        pairs: All training rows; what they call relevant is never a negative.
        hard_negatives: Hard negatives used per pair, at most.
        token_budget: Padded tokens per micro-batch.
        loss: The loss, as in the settings: it decides which rows have nothing to contrast with.
        ranks: The processes that share a batch's texts.

    Attributes:
        token_budget: As given; may be lowered between batches.
    """

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[Pair],
        *,
        hard_negatives: int,
        token_budget: int,
        loss: str = "stm",
        ranks: Ranks | None = None,
    ) -> None:
        self._prompts = backbone.prompts
        # Rows may carry a prompt of their own, so prompts are put on here and not by the tokenizer.
        self._tokenizer = TextTokenizer.from_json(
            backbone.tokenizer_json,
            max_length=backbone.max_length,
            eos_token_id=backbone.eos_token_id,
            pad_token_id=backbone.pad_token_id,
            prompts=Prompts(),
        )
        self._known = known_positives(pairs)
        self._hard_negatives = hard_negatives
        self._loss = loss
        self._ranks = ranks or Ranks()
        self.token_budget = token_budget

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """Tokenise and pad this process's share of one step's rows, and label all of them.

        Raises:
            TrainingError: If a row has nothing to contrast with.
        """
        own = [self._true_negatives(pair) for pair in pairs]
        negatives = [
            pair.negatives[place] for pair, places in zip(pairs, own, strict=True) for place in places
        ]
        labels = self._labels(pairs, own, negatives)
        self._check_contrast(pairs, labels)
        texts = self.queries(pairs) + self.documents([pair.positive for pair in pairs] + negatives)
        ids, rows = self.own_ids(texts, first=0)
        return Batch(micro_batches=self.cut(ids, rows), labels=labels, texts=len(texts))

    def own_ids(self, texts: Sequence[str], *, first: int) -> tuple[list[Ids], list[int]]:
        """Tokenise this process's share of texts.

        Args:
            texts: Texts with their prompts.
            first: Place of the first one among all texts of the batch.

        Returns:
            Token ids of the share, and the places of its texts.
        """
        share = self._ranks.own_share([len(text) for text in texts])
        return self.token_ids([texts[place] for place in share]), [first + place for place in share]

    def token_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts with their prompts."""
        return self._tokenizer.encode(texts, "document")  # the role chooses a prompt, and here is none

    def documents(self, texts: Sequence[str]) -> list[str]:
        """Texts with the document prompt."""
        return [self._prompts.document + text for text in texts]

    def queries(self, pairs: Sequence[Pair]) -> list[str]:
        """The pairs' queries with their prompts."""
        return [self._query_prompt(pair) + pair.query for pair in pairs]

    def cut(self, ids: Sequence[Ids], rows: Sequence[int]) -> list[MicroBatch]:
        """Cut texts into micro-batches of the present budget."""
        return cut(ids, rows, self._tokenizer, self.token_budget)

    def _labels(
        self, pairs: Sequence[Pair], own: Sequence[Sequence[int]], negatives: Sequence[str]
    ) -> Labels:
        """Labels of all rows; ``own`` are the places of each pair's negatives that are used."""
        queries = [pair.query for pair in pairs]
        excluded = false_negatives(queries, [pair.positive for pair in pairs], self._known)
        excluded_negatives = false_negatives(queries, negatives, self._known)
        labels = Labels(
            negative_counts=torch.tensor([len(places) for places in own]),
            excluded=torch.tensor(excluded),
            excluded_negatives=torch.tensor(excluded_negatives, dtype=torch.bool).reshape(
                len(pairs), len(negatives)
            ),
        )
        if not any(pair.scores for pair in pairs):
            return labels
        scores = [pair.scores or (math.nan,) * (1 + len(pair.negatives)) for pair in pairs]
        of_negatives = [row[1 + place] for row, places in zip(scores, own, strict=True) for place in places]
        return replace(
            labels,
            teacher_positive=torch.tensor([row[0] for row in scores], dtype=torch.float32),
            teacher_negatives=torch.tensor(of_negatives, dtype=torch.float32),
        )

    def _check_contrast(self, pairs: Sequence[Pair], labels: Labels) -> None:
        """Refuse a batch with a row whose every negative is masked: it would teach nothing, unnoticed."""
        if self._loss == "hard_negatives":
            return  # rows without hard negatives take no part, as they were given
        others = ~labels.excluded
        others.fill_diagonal_(False)
        contrast = others.any(dim=1) | (labels.negative_counts > 0)
        if self._loss == "info_nce":
            contrast |= (~labels.excluded_negatives).any(dim=1)
        if bool(contrast.all()):
            return
        row = int((~contrast).nonzero()[0, 0])
        message = (
            f"The query {pairs[row].query[:60]!r} (id {pairs[row].query_id or 'none'}) has no negative left: "
            f"all {len(pairs) - 1} other positives of its batch are known to be relevant to it, and it has "
            f"no hard negatives. Raise batch_size ({len(pairs)}), give it hard negatives, or remove some of "
            f"its {len(self._known[text_key(pairs[row].query)])} pairs."
        )
        raise TrainingError(message)

    def _true_negatives(self, pair: Pair) -> list[int]:
        """Places of the pair's negatives that are used: none that is known to be relevant to its query."""
        relevant = self._known.get(text_key(pair.query), frozenset())
        true = [place for place, text in enumerate(pair.negatives) if text_key(text) not in relevant]
        return true[: self._hard_negatives]

    def _query_prompt(self, pair: Pair) -> str:
        return self._prompts.query if pair.prompt is None else pair.prompt
