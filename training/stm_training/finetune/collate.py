"""From training rows to token ids, cut into micro-batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from stm_retriever.folder import Prompts
from stm_retriever.tokenization import Ids, TextTokenizer, token_budget_batches
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.pair_keys import false_negatives, known_positives, text_key


class MicroBatch(TypedDict):
    """Texts of like length: ``rows`` (m,) are their places among all texts of the batch."""

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor


class Batch(TypedDict):
    """One step: its texts are b queries, b positives, then the hard negatives row by row.

    ``negative_counts`` (b,) int64; ``excluded`` (b, b) and ``excluded_negatives`` (b, m) boolean mark texts
    known to be relevant to a query, which are none of its negatives.
    """

    micro_batches: list[MicroBatch]
    negative_counts: Tensor
    excluded: Tensor
    excluded_negatives: Tensor


class Collator:
    """Tokenises rows exactly as serving will, and pads only among texts of like length.

    Args:
        backbone: Gives tokenizer and prompts.
        pairs: All training rows; what they call relevant is never a negative.
        hard_negatives: Hard negatives used per pair, at most.
        token_budget: Padded tokens per micro-batch.
    """

    def __init__(
        self, backbone: Backbone, pairs: Sequence[Pair], *, hard_negatives: int, token_budget: int
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
        self._token_budget = token_budget

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """Tokenise and pad one step's rows."""
        queries = [pair.query for pair in pairs]
        positives = [pair.positive for pair in pairs]
        own = [self._true_negatives(pair) for pair in pairs]
        negatives = [text for texts in own for text in texts]
        prompted = [self._query_prompt(pair) + pair.query for pair in pairs]
        ids = self._tokenizer.encode(prompted, "query")
        ids += self._tokenizer.encode(
            [self._prompts.document + text for text in positives + negatives], "document"
        )
        return Batch(
            micro_batches=self._micro_batches(ids),
            negative_counts=torch.tensor([len(texts) for texts in own]),
            excluded=torch.tensor(false_negatives(queries, positives, self._known)),
            excluded_negatives=torch.tensor(
                false_negatives(queries, negatives, self._known), dtype=torch.bool
            ).reshape(len(pairs), len(negatives)),
        )

    def _true_negatives(self, pair: Pair) -> list[str]:
        relevant = self._known[text_key(pair.query)]
        return [text for text in pair.negatives if text_key(text) not in relevant][: self._hard_negatives]

    def _query_prompt(self, pair: Pair) -> str:
        return self._prompts.query if pair.prompt is None else pair.prompt

    def _micro_batches(self, ids: list[Ids]) -> list[MicroBatch]:
        batches: list[MicroBatch] = []
        for rows in token_budget_batches([len(row) for row in ids], self._token_budget):
            input_ids, mask = self._tokenizer.pad([ids[row] for row in rows])
            batches.append(
                MicroBatch(
                    input_ids=torch.from_numpy(input_ids),
                    attention_mask=torch.from_numpy(mask),
                    rows=torch.tensor(rows),
                )
            )
        return batches
