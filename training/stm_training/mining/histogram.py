"""Score distributions that are counted as they stream by, and shown as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stm_training.mining.nearest import Floats

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SHOWN_ROWS = 20
_BAR = 24


class ScoreCounts:
    """Counts of scores in bins of one width; as many bins as the scores need.

    Args:
        width: Of a bin: how exactly quantiles are known.
    """

    def __init__(self, width: float) -> None:
        self.width = width
        self._first = 0
        self._counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, scores: Floats) -> None:
        """Count finite scores of any shape."""
        if scores.size == 0:
            return
        bins = np.floor(scores.reshape(-1) / self.width).astype(np.int64)
        first, last = int(bins.min()), int(bins.max()) + 1
        if len(self._counts):
            first, last = min(first, self._first), max(last, self._first + len(self._counts))
        counts = np.bincount(bins - first, minlength=last - first)
        if len(self._counts):
            counts[self._first - first : self._first - first + len(self._counts)] += self._counts
        self._first, self._counts = first, counts

    @property
    def total(self) -> int:
        """How many scores were counted."""
        return int(self._counts.sum())

    def quantile(self, share: float) -> float:
        """The score below which this share lies, to the width of a bin; nan if there is none."""
        if not self.total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self._counts), max(1, round(share * self.total))))
        return float((self._first + place + 0.5) * self.width)

    def rebinned(self, edges: Sequence[float]) -> list[int]:
        """Counts between edges, the last one inclusive."""
        centres = (self._first + np.arange(len(self._counts)) + 0.5) * self.width
        return [int(count) for count in np.histogram(centres, bins=list(edges), weights=self._counts)[0]]

    def summary(self) -> dict[str, Any]:
        """Number and quantiles, for JSON."""
        if not self.total:
            return {"count": 0}
        quantiles = {f"q{round(100 * share):02d}": round(self.quantile(share), 4) for share in _QUANTILES}
        return {"count": self.total, **quantiles}

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest edge of the bins that hold something."""
        return self._first * self.width, (self._first + len(self._counts)) * self.width


def common_edges(distributions: Sequence[ScoreCounts]) -> list[float]:
    """Round bin edges that cover all distributions in some twenty rows."""
    spans = [counts.span for counts in distributions if counts.total]
    if not spans:
        return [0.0, 1.0]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    rough = max((high - low) / _SHOWN_ROWS, 1e-9)
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [round(place * step, 10) for place in range(first, max(last, first + 1) + 1)]


def draw(distributions: Mapping[str, ScoreCounts]) -> str:
    """The distributions side by side as bars, each scaled to its own highest bin."""
    edges = common_edges(list(distributions.values()))
    columns = {name: counts.rebinned(edges) for name, counts in distributions.items()}
    heads = {name: f"{name} ({counts.total:,})" for name, counts in distributions.items()}
    size = max(_BAR + 8, *(len(head) for head in heads.values()))
    label = max(len(f"{edge:g}") for edge in edges)
    lines = [" " * (2 * label + 6) + "  ".join(head.ljust(size) for head in heads.values())]
    for place, (low, high) in enumerate(pairwise(edges)):
        cells = []
        for counts in columns.values():
            length = round(_BAR * counts[place] / max(max(counts), 1))
            cells.append(
                (("#" * length or ("." if counts[place] else "")) + f" {counts[place]:,}").ljust(size)
            )
        lines.append(f"  {low:>{label}g} .. {high:>{label}g}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)
