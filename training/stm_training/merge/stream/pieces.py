"""Cut tensors of any shape into runs of consecutive numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of a tensor.

    Attributes:
        index: What selects them in the tensor, one entry per leading axis.
        offset: Place of the first in the flattened tensor.
        numbers: How many.
    """

    index: tuple[int | slice, ...]
    offset: int
    numbers: int


def cut(shape: Sequence[int], limit: int) -> list[Piece]:
    """Cut a tensor into pieces, whole rows where they fit.

    Args:
        shape: The tensor's.
        limit: Most numbers in a piece, at least 1.

    Returns:
        The pieces in the order of the flattened tensor; none for a tensor without numbers.
    """
    return list(_cut(tuple(shape), limit, (), 0)) if math.prod(shape) else []


def _cut(shape: tuple[int, ...], limit: int, lead: tuple[int | slice, ...], offset: int) -> Iterator[Piece]:
    if not shape:
        yield Piece(lead, offset, 1)
        return
    row = math.prod(shape[1:])
    if row > limit and len(shape) > 1:
        for place in range(shape[0]):
            yield from _cut(shape[1:], limit, (*lead, place), offset + place * row)
        return
    step = max(1, limit // row)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield Piece((*lead, slice(start, stop)), offset + start * row, (stop - start) * row)
