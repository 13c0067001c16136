"""Choosing training pairs by how strongly they pull at the weights, and the random choice to judge it by.

The idea is that of GrADS (Liu et al. 2025, arXiv 2511.08620): judge examples by the size and the distribution
of the gradients that they give after a preliminary training. The rest is ours: GrADS reads the embedding and
output layers of a generative model and estimates a density over examples; here it is a contrastive loss, the
norm over all trainable weights, and two quantiles beyond which pairs are dropped (small: learnt already;
large: often noise). Whether that is worth its cost is for each data set to show: always train on
:func:`random_selection` of equal size beside it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair
from stm_training.finetune.pair_gradients import Progress, ScoredBatch, gradient_norms
from stm_training.finetune.pair_keys import row_keys
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.finetune.settings import TrainSettings

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

_BINS = 20


@dataclass(frozen=True)
class Selection:
    """A choice of pairs.

    Attributes:
        method: ``"gradient"`` or ``"random"``.
        total: Number of pairs chosen from.
        kept: Places of the chosen ones, ascending.
        seed: Of the batches, or of the sample.
        norms: (total,) float64 gradient norms; ``None`` for a random choice.
        dropped_low: How many were dropped for their small norm.
        dropped_high: How many for their large one.
    """

    method: str
    total: int
    kept: tuple[int, ...]
    seed: int
    norms: NDArray[np.float64] | None = None
    dropped_low: int = 0
    dropped_high: int = 0

    def of(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The chosen pairs, in their order.

        Raises:
            ConfigError: If these are not as many as it was chosen from.
        """
        if len(pairs) != self.total:
            message = f"The selection is of {self.total} pairs, but got {len(pairs)}. Give the same ones."
            raise ConfigError(message)
        return [pairs[place] for place in self.kept]

    def report(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """What was chosen and why, ready for JSON.

        ``thresholds``: the smallest and the largest norm kept. ``histogram``: counts of all pairs and of the
        kept ones between ``edges``, which are evenly spaced in the logarithm; norms of 0 are counted apart.
        ``kept`` names each pair by its place and, if it has one, its query's id.
        """
        found: dict[str, Any] = {
            "method": self.method,
            "seed": self.seed,
            "pairs": self.total,
            "kept": [
                {"place": place} if pair.query_id is None else {"place": place, "query_id": pair.query_id}
                for place, pair in zip(self.kept, self.of(pairs), strict=True)
            ],
        }
        if self.norms is not None:
            kept = self.norms[list(self.kept)]
            found |= {
                "dropped_low": self.dropped_low,
                "dropped_high": self.dropped_high,
                "thresholds": [float(kept.min()), float(kept.max())],
                "histogram": _histogram(self.norms, kept),
            }
        return found


def select_by_gradient(
    backbone: Backbone,
    pairs: Sequence[Pair],
    *,
    settings: TrainSettings,
    drop_low: float = 0.1,
    drop_high: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Selection:
    """Drop the pairs with the smallest and the largest gradients.

    Every pair meets ``settings.batch_size - 1`` others in a fixed batch, none with its document or query, and
    its own loss's gradient is taken there (:mod:`stm_training.finetune.pair_gradients` says of what exactly,
    and what it costs: about an epoch). One process; the same call gives the same choice.

    Args:
        backbone: After a short probe training, its adapter still attached (or all weights trainable).
        pairs: n rows.
        settings: Those of the probe training.
        drop_low: Share of pairs to drop at the lower end, rounded down to whole pairs.
        drop_high: Share at the upper end.
        seed: Of the batches.
        progress: Called with the number of pairs done and their total.

    Returns:
        The choice; equal norms count as larger the later their pair stands.

    Raises:
        ConfigError: If the shares leave no pair.
        TrainingError: If the pairs fill no batch, nothing is trainable, or a gradient is not finite.
    """
    low, high = _counts(len(pairs), drop_low, drop_high)
    batches = scored_batches(pairs, batch_size=settings.batch_size, seed=seed)
    norms = gradient_norms(backbone, pairs, batches, settings=settings, progress=progress)
    order = np.argsort(norms, kind="stable")
    kept = np.sort(order[low : len(pairs) - high])
    return Selection("gradient", len(pairs), tuple(kept.tolist()), seed, norms, low, high)


def random_selection(pairs: Sequence[Pair], *, size: int, seed: int = 0) -> Selection:
    """As many pairs by lot, each as likely as any other: what a selection has to beat.

    Raises:
        ConfigError: If there are not as many pairs, or none is wanted.
    """
    if not 1 <= size <= len(pairs):
        message = f"{size} pairs are to be drawn from {len(pairs)}. Set a size from 1 to {len(pairs)}."
        raise ConfigError(message)
    kept = random.Random(f"selection/{seed}").sample(range(len(pairs)), size)
    return Selection("random", len(pairs), tuple(sorted(kept)), seed)


def scored_batches(pairs: Sequence[Pair], *, batch_size: int, seed: int) -> list[ScoredBatch]:
    """Batches in which every pair is scored once, without two rows of a document or query.

    The sampler's first epoch, and for the rows that it leaves over batches filled up with rows that are not
    scored again. A row that conflicts with very many meets fewer others.

    Raises:
        TrainingError: If the pairs cannot fill one batch.
    """
    full = NoDuplicatesBatchSampler(pairs, batch_size=batch_size, seed=seed).epoch(0)
    batches = [ScoredBatch(tuple(rows), batch_size) for rows in full]
    left = sorted(set(range(len(pairs))) - {row for rows in full for row in rows})
    fillers = [row for rows in full for row in rows]
    while left:
        rows = _compatible(pairs, left, batch_size)
        scored = len(rows)
        left = sorted(set(left) - set(rows))
        rows = _compatible(pairs, [*rows, *fillers], batch_size)
        batches.append(ScoredBatch(tuple(rows), scored))
    return batches


def _compatible(pairs: Sequence[Pair], rows: Sequence[int], most: int) -> list[int]:
    """The first rows that go together."""
    taken: list[int] = []
    seen: set[int] = set()
    for row in rows:
        keys = row_keys(pairs[row])
        if seen.isdisjoint(keys):
            taken.append(row)
            seen.update(keys)
            if len(taken) == most:
                break
    return taken


def _counts(total: int, low: float, high: float) -> tuple[int, int]:
    if not (low >= 0 and high >= 0 and low + high < 1) or total == 0:
        message = (
            f"drop_low {low} and drop_high {high} of {total} pairs leave nothing to train on. Give two "
            f"shares from 0 that add up to less than 1, and pairs."
        )
        raise ConfigError(message)
    return int(total * low), int(total * high)


def _histogram(norms: NDArray[np.float64], kept: NDArray[np.float64]) -> dict[str, Any]:
    positive = norms[norms > 0]
    zeros = int((norms == 0).sum())
    if not len(positive):
        return {"zeros": zeros, "edges": [], "pairs": [], "kept": []}
    edges = np.geomspace(positive.min(), positive.max(), _BINS + 1)
    edges[0], edges[-1] = positive.min(), positive.max()  # geomspace rounds, and must lose neither
    counts, chosen = (np.histogram(values[values > 0], edges)[0] for values in (norms, kept))
    return {"zeros": zeros, "edges": edges.tolist(), "pairs": counts.tolist(), "kept": chosen.tolist()}
