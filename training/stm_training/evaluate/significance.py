"""How sure a difference between two systems is: the paired bootstrap over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError

_DRAWS_PER_BLOCK = 2**22  # 32 MiB of indices at a time


class Interval(NamedTuple):
    """A mean difference and its confidence interval, in the unit of the differences."""

    mean: float
    lo: float
    hi: float


def paired_bootstrap(
    diffs: Sequence[float] | NDArray[np.float64],
    *,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a mean of paired differences (Efron and Tibshirani 1993, ch. 13).

    Queries are drawn with replacement; a query keeps both its scores, so what the systems share cancels out.

    Args:
        diffs: (n,) one difference per query, system minus reference.
        samples: Bootstrap samples.
        seed: The same seed and differences give the same interval.
        level: Coverage aimed at, between 0 and 1.

    Returns:
        The mean and the interval's two ends. With a handful of queries the interval is too narrow: state n.

    Raises:
        ConfigError: If ``samples`` or ``level`` cannot be used.
        DataError: If there are no differences or one is not finite.
    """
    values = np.asarray(diffs, dtype=np.float64)
    _check(values, samples, level)
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_PER_BLOCK // len(values))
    means = np.empty(samples)
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        drawn = rng.integers(0, len(values), size=(stop - start, len(values)))
        means[start:stop] = values[drawn].mean(axis=1)
    tail = (1.0 - level) / 2.0
    lo, hi = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(lo), float(hi))


def _check(values: NDArray[np.float64], samples: int, level: float) -> None:
    if samples < 1:
        raise ConfigError(f"samples is {samples}; an interval needs at least one, and 10000 is usual.")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level is {level}; it must lie between 0 and 1, for instance 0.95.")
    if values.ndim != 1 or len(values) == 0:
        raise DataError(
            f"the differences have shape {values.shape}; one per query is needed, and at least one. "
            "Check that both systems were scored on the same judged queries."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} differences are not finite, "
            "so there is no mean. Look for NaN in the scores of either system."
        )
