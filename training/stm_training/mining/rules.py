"""Which candidates may be negatives: similarity band and positive-aware margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stm_training.mining.nearest import Floats, Ints
from stm_training.mining.settings import MineSection

Verdicts = NDArray[np.int8]

# A candidate's verdict is the first of these that rejects it, 0 if none does, -1 if there is no candidate.
NO_CANDIDATE, KEPT = -1, 0
SKIPPED, SHARE, MARGIN, ABOVE, BELOW = 1, 2, 3, 4, 5
RULES = {
    SKIPPED: "skip_top",
    SHARE: "positive_share",
    MARGIN: "absolute_margin",
    ABOVE: "above_band",
    BELOW: "below_band",
}


@dataclass(frozen=True)
class Window:
    """The candidates of b queries, in the order in which they are taken.

    Attributes:
        columns: (b, w) int64.
        scores: (b, w) float32, under the model that judges; -inf where there is no candidate.
        ranks: (b, w) int64 from 1, by the miner that found them (the better one, if both did).
    """

    columns: Ints
    scores: Floats
    ranks: Ints


def share_threshold(positives: Floats, share: float) -> Floats:
    """What a negative must score below: the positive minus (1 - share) of its absolute value.

    For a positive score this is NV-Retriever's percentage of it (arXiv 2407.15831, section 3.1). Of a
    negative score, a plain percentage would lie above the positive itself.
    """
    return (positives - np.abs(positives) * np.float32(1 - share)).astype(np.float32, copy=False)


def judge(
    window: Window, positives: Floats, settings: MineSection, band: tuple[float, float] | None
) -> Verdicts:
    """Apply the rules.

    Args:
        window: The candidates.
        positives: (b,) score of each query's positive; of its lowest one, where it has several.
        settings: The rules.
        band: The band in scores, quantiles resolved.

    Returns:
        (b, w) verdicts.
    """
    scores = window.scores
    verdicts = np.zeros(scores.shape, dtype=np.int8)
    # Last to first: an earlier rule's verdict stands.
    if band is not None:
        verdicts[scores < np.float32(band[0])] = BELOW
        verdicts[scores > np.float32(band[1])] = ABOVE
    if settings.absolute_margin is not None:
        verdicts[scores >= (positives - np.float32(settings.absolute_margin))[:, None]] = MARGIN
    if settings.positive_share is not None:
        verdicts[scores >= share_threshold(positives, settings.positive_share)[:, None]] = SHARE
    verdicts[window.ranks <= settings.skip_top] = SKIPPED
    verdicts[np.isneginf(scores)] = NO_CANDIDATE
    return verdicts


def take(verdicts: Verdicts, pool: int, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose n of the first ``pool`` candidates that passed, per row.

    Args:
        verdicts: (b, w).
        pool: How many are drawn among; the first n are taken where it is n.
        n: How many are chosen.
        rng: Draws; the draw does not depend on how rows are cut into blocks.

    Returns:
        (b, w) boolean.
    """
    passed: NDArray[np.bool_] = verdicts == KEPT
    passed &= np.cumsum(passed, axis=1, dtype=np.int32) <= pool
    if pool <= n:
        return passed
    rows, places = np.nonzero(passed)
    # Every row uses up the same share of the stream, whatever it has to draw from.
    within = np.cumsum(passed, axis=1)[rows, places] - 1
    keys = np.full((len(verdicts), pool), np.inf)
    keys[rows, within] = rng.random((len(verdicts), pool))[rows, within]
    drawn = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(drawn, np.argsort(keys, axis=1, kind="stable")[:, :n], True, axis=1)
    passed[rows, places] = drawn[rows, within]
    return passed
