"""A batch's texts as micro-batches: padded only among texts of like length, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from stm_retriever.tokenization import Ids, TextTokenizer, token_budget_batches


class MicroBatch(TypedDict):
    """Texts of like length: ``rows`` (m,) are their places among all texts of the batch.

    ``input_ids`` and ``attention_mask`` are (m, length) int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor


def cut(
    ids: Sequence[Ids], rows: Sequence[int], tokenizer: TextTokenizer, token_budget: int
) -> list[MicroBatch]:
    """Sort texts by length and cut them into micro-batches.

    Args:
        ids: n texts' token ids.
        rows: Their n places among all texts of the batch.
        tokenizer: Pads.
        token_budget: Padded tokens per micro-batch; a longer text goes alone.

    Returns:
        Micro-batches, longest first, so that memory runs out at once or never.
    """
    parts: list[MicroBatch] = []
    for places in token_budget_batches([len(row) for row in ids], token_budget):
        input_ids, mask = tokenizer.pad([ids[place] for place in places])
        parts.append(
            MicroBatch(
                input_ids=torch.from_numpy(input_ids),
                attention_mask=torch.from_numpy(mask),
                rows=torch.tensor([rows[place] for place in places]),
            )
        )
    return parts


def texts_of(parts: Sequence[MicroBatch]) -> tuple[list[Ids], list[int]]:
    """Take micro-batches apart again: the texts' ids without padding, and their places in the batch."""
    ids = [
        row[mask.bool()].numpy()
        for part in parts
        for row, mask in zip(part["input_ids"].cpu(), part["attention_mask"].cpu(), strict=True)
    ]
    return ids, rows_of(parts).tolist()


def rows_of(parts: Sequence[MicroBatch]) -> Tensor:
    """Places (n,) of the texts in the batch, in the order in which they are encoded."""
    return torch.cat([part["rows"] for part in parts])


def longest_text(parts: Sequence[MicroBatch]) -> int:
    """Tokens of the longest text."""
    return max(part["input_ids"].shape[1] for part in parts)


def padded_tokens(parts: Sequence[MicroBatch]) -> int:
    """Tokens that go through the model, padding included."""
    return sum(part["input_ids"].numel() for part in parts)


def real_tokens(parts: Sequence[MicroBatch]) -> int:
    """Tokens without padding."""
    return sum(int(part["attention_mask"].sum()) for part in parts)


def to_device(part: MicroBatch, device: torch.device) -> MicroBatch:
    """The same micro-batch on a device; the copy runs beside the computation where memory is pinned."""
    return MicroBatch(
        input_ids=part["input_ids"].to(device, non_blocking=True),
        attention_mask=part["attention_mask"].to(device, non_blocking=True),
        rows=part["rows"],
    )
