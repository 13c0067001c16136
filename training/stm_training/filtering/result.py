"""What the filters pass to each other, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stm_training.data.records import Pair
from stm_training.synthesize.filters import Dropped

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, done, total) from the calling thread."""

Encode: TypeAlias = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts in one role -> (n, d) vectors; of any length, since they are scaled to unit length."""

Scorer: TypeAlias = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]
"""(query, passage) pairs -> (n,) relevance, higher is better; only the order is used."""


def silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True)
class FilterResult:
    """What the filters left, and what became of the rest.

    Attributes:
        pairs: In the given order; some with fewer negatives.
        dropped: By filter: how many texts, and the first few with their passage's id. Names that begin with
            ``negative_`` count negatives, the others pairs.
        counts: ``pairs_in``, ``pairs``, ``negatives_in``, ``negatives``, and ``<filter>_unchecked`` for pairs
            that a filter could not judge (a positive that is not in the corpus) and so kept.
        seconds: Wall time by filter.
        notes: What a reader of the figures should know.
    """

    pairs: list[Pair]
    dropped: dict[str, Dropped] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
