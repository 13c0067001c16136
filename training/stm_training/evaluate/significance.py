"""How sure a difference between two systems is: the paired bootstrap over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError, DataError
from stm_training.evaluate.bootstrap import DEFAULT, Method, Resampled, interval

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
    method: Method = DEFAULT,
) -> Interval:
    """Bootstrap interval of a mean of paired differences.

    Queries are drawn with replacement; a query keeps both its scores, so what the systems share cancels out.

    Args:
        diffs: (n,) one difference per query, system minus reference.
        samples: Bootstrap samples.
        seed: The same seed and differences give the same interval.
        level: Coverage aimed at, between 0 and 1.
        method: See :func:`stm_training.evaluate.bootstrap.interval`.

    Returns:
        The mean and the interval's two ends. With a handful of queries no interval can be trusted: state n.

    Raises:
        ConfigError: If ``samples``, ``level`` or ``method`` cannot be used.
        DataError: If there are no differences or one is not finite.
    """
    values = np.asarray(diffs, dtype=np.float64)
    _check(values, samples, level)
    lo, hi = interval(method, _resample(values, samples, seed, squares=method == "studentised"), level)
    return Interval(float(values.mean()), float(lo[0]), float(hi[0]))


def _resample(values: NDArray[np.float64], samples: int, seed: int, *, squares: bool) -> Resampled:
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_PER_BLOCK // len(values))
    means, mean_squares = np.empty((1, samples)), np.empty((1, samples)) if squares else None
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        drawn = values[rng.integers(0, len(values), size=(stop - start, len(values)))]
        means[0, start:stop] = drawn.mean(axis=1)
        if mean_squares is not None:
            mean_squares[0, start:stop] = (drawn**2).mean(axis=1)
    return Resampled(values[None, :], means, mean_squares)


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
