"""Whether a difference between two systems could be luck: tests of paired differences, Holm, effect size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stm_retriever.errors import ConfigError, DataError

EXACT_UP_TO = 16
"""With at most so many differences other than 0, every assignment of signs is tried."""

_CELLS_PER_BLOCK = 2**22  # 32 MiB of signs at a time
_SAME = 1e-12  # relative: sums closer than this are one sum in another order


def permutation_test(diffs: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean by exchanging the two systems per query (Fisher's randomisation).

    If the systems were alike, each difference could as well have had the other sign. With few differences
    other than 0 every assignment of signs is tried; else ``samples`` random ones, the observed one counted
    among them so that p is never 0 (Phipson and Smyth 2010). Smucker, Allan and Carterette (2007) find this
    the test of choice for retrieval.

    Args:
        diffs: (n,) one difference per query.
        samples: Random assignments of signs, where not all can be tried.
        seed: The same seed and differences give the same p.

    Returns:
        A p-value in (0, 1]; 1 where no query differs.

    Raises:
        ConfigError: If ``samples`` is below 1.
        DataError: If there are no differences or one is not finite.
    """
    values = _checked(diffs)
    if samples < 1:
        raise ConfigError(f"samples is {samples}; a test needs at least one, and 10000 is usual.")
    nonzero = values[values != 0]
    if len(nonzero) == 0:
        return 1.0
    observed = abs(float(nonzero.sum())) * (1.0 - _SAME) - _SAME * float(np.abs(nonzero).max())
    if len(nonzero) <= EXACT_UP_TO:
        return _exact(nonzero, observed)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS_PER_BLOCK // len(nonzero))
    as_far = 0
    for start in range(0, samples, step):
        count = min(step, samples - start)
        signs = rng.integers(0, 2, size=(count, len(nonzero)), dtype=np.int8).astype(np.float64)
        as_far += int((np.abs((2.0 * signs - 1.0) @ nonzero) >= observed).sum())
    return (1 + as_far) / (1 + samples)


def _exact(nonzero: NDArray[np.float64], observed: float) -> float:
    sums = np.zeros(1)
    for value in nonzero:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= observed).mean())


def bootstrap_test(diffs: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean by the bootstrap: resamples of the differences moved to mean 0.

    Efron and Tibshirani 1993, ch. 16.4, with the mean itself as the statistic.

    Arguments, result and errors are those of :func:`permutation_test`.
    """
    values = _checked(diffs)
    if samples < 1:
        raise ConfigError(f"samples is {samples}; a test needs at least one, and 10000 is usual.")
    mean = float(values.mean())
    if not values.any():
        return 1.0
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS_PER_BLOCK // len(values))
    observed = abs(mean) * (1.0 - _SAME)
    as_far = 0
    for start in range(0, samples, step):
        count = min(step, samples - start)
        means = values[rng.integers(0, len(values), size=(count, len(values)))].mean(axis=1)
        as_far += int((np.abs(means - mean) >= observed).sum())
    return (1 + as_far) / (1 + samples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): each may be held against the level as it is.

    Args:
        p_values: Between 0 and 1, of one family of comparisons.

    Returns:
        The corrected values, at most 1, in the order given.

    Raises:
        DataError: If one is not between 0 and 1.
    """
    bad = [p for p in p_values if not 0.0 <= p <= 1.0]
    if bad:
        raise DataError(f"{bad[0]} is no p-value: it must lie between 0 and 1.")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def effect_size(diffs: ArrayLike) -> float | None:
    """Mean of the differences in units of their own standard deviation (Cohen's d of pairs, d_z).

    About 0.2 is called small and 0.5 medium. Unlike a p-value it does not grow with the number of queries.

    Returns:
        d; 0 where no query differs, None where all differ by one same amount or there is only one query.

    Raises:
        DataError: If there are no differences or one is not finite.
    """
    values = _checked(diffs)
    if not values.any():
        return 0.0
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if spread <= _SAME or not math.isfinite(spread):
        return None
    return float(values.mean()) / spread


def _checked(diffs: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(diffs, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise DataError(
            f"the differences have shape {values.shape}; one per query is needed, and at least one. "
            "Check that both systems were scored on the same judged queries."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} differences are not finite, "
            "so nothing can be tested. Look for NaN in the scores of either system."
        )
    return values
