"""Bootstrap intervals of a mean from its resamples: symmetric, percentile, BCa and studentised.

Everything works on rows: row ``i`` of each array belongs to one sample of differences. One sample is a row
of one; a simulation has thousands (``benchmarks/intervals.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from stm_retriever.errors import ConfigError

Floats: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["symmetric", "percentile", "bca", "studentised"]

METHODS: tuple[Method, ...] = get_args(Method)

DEFAULT: Method = "symmetric"
"""Closest to its nominal coverage on differences as they are here: see ``benchmarks/intervals.py``."""

_SAME = 1e-12  # means closer than this are one value summed in another order
_FAR = 1e12  # stands for an infinite t, which cannot be interpolated; the ends are clipped anyhow


@dataclass(frozen=True, slots=True)
class Resampled:
    """Samples of differences and the means of their resamples.

    Attributes:
        values: (r, n) the differences.
        means: (r, b) mean of every resample.
        squares: (r, b) mean square of every resample; only the studentised interval asks for it.
    """

    values: Floats
    means: Floats
    squares: Floats | None = None


def interval(method: Method, resampled: Resampled, level: float) -> tuple[Floats, Floats]:
    """Both ends of the interval of every sample's mean.

    Args:
        method: ``symmetric``: the mean and the quantile of the resamples' distance from it to either side
            (Hall 1988, "On symmetric bootstrap confidence intervals"), widened as Student's t is against the
            normal (Hesterberg 2015, section 5.3); ``percentile``: the quantiles of the resampled means (Efron
            and Tibshirani 1993, ch. 13); ``bca``: those quantiles corrected for bias and skewness (ibid.,
            ch. 14.3); ``studentised``: by the quantiles of the resampled t statistic (ibid., ch. 12.5).
        resampled: The samples and their resamples.
        level: Coverage aimed at, between 0 and 1.

    Returns:
        (r,) lower and (r,) upper ends. All but those of ``symmetric`` lie within the differences; a symmetric
        one can reach beyond: ten queries of which none was lost do not say that none can be.

    Raises:
        ConfigError: If there is no such method, or squares are missing for ``studentised``.
    """
    tail = (1.0 - level) / 2.0
    if method == "symmetric":
        return _symmetric(resampled, level)
    if method == "percentile":
        probabilities = np.tile([tail, 1.0 - tail], (len(resampled.means), 1))
        ends = _quantiles(np.sort(resampled.means, axis=1), probabilities)
    elif method == "bca":
        ends = _quantiles(np.sort(resampled.means, axis=1), _corrected(resampled, tail))
    elif method == "studentised":
        ends = _studentised(resampled, tail)
    else:
        raise ConfigError(f"there is no interval {method!r}; there are {', '.join(METHODS)}.")
    least, most = resampled.values.min(axis=1), resampled.values.max(axis=1)
    return np.clip(ends[:, 0], least, most), np.clip(ends[:, 1], least, most)


def t_quantile(level: float, freedom: int) -> float:
    """The t that a Student variable exceeds in size with probability ``1 - level``: Hill 1970, Algorithm 396.

    Args:
        level: Between 0 and 1, for instance 0.95.
        freedom: Degrees of freedom, at least 1.
    """
    outside = 1.0 - level
    if freedom == 1:
        return 1.0 / math.tan(outside * math.pi / 2.0)
    if freedom == 2:
        return math.sqrt(2.0 / (outside * (2.0 - outside)) - 2.0)
    a = 1.0 / (freedom - 0.5)
    b = 48.0 / a**2
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * math.sqrt(a * math.pi / 2.0) * freedom
    y = (d * outside) ** (2.0 / freedom)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(outside / 2.0)
        y = x * x
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x
        y = math.expm1(a * y * y)
    else:
        small = 1.0 / (((freedom + 6.0) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2.0) * 3.0)
        y = ((small + 0.5 / (freedom + 4.0)) * y - 1.0) * (freedom + 1.0) / (freedom + 2.0) + 1.0 / y
    return math.sqrt(freedom * y)


def _symmetric(resampled: Resampled, level: float) -> tuple[Floats, Floats]:
    n = resampled.values.shape[1]
    mean = resampled.values.mean(axis=1)
    away = np.sort(np.abs(resampled.means - mean[:, None]), axis=1)
    reach = _quantiles(away, np.full((len(away), 1), level))[:, 0]
    if n > 1:  # of one difference nothing can be resampled, so there is nothing to widen
        normal = NormalDist().inv_cdf((1.0 + level) / 2.0)
        reach *= t_quantile(level, n - 1) / normal * math.sqrt(n / (n - 1))
    return mean - reach, mean + reach


def _corrected(resampled: Resampled, tail: float) -> Floats:
    """(r, 2) probabilities to read the resampled means at instead of the tails (eq. 14.10)."""
    normal = NormalDist()
    mean = resampled.values.mean(axis=1, keepdims=True)
    count = resampled.means.shape[1]
    # A tie counts half: with few different values many resamples have the very mean of the sample.
    below = (resampled.means < mean - _SAME).mean(axis=1)
    ties = (np.abs(resampled.means - mean) <= _SAME).mean(axis=1)
    share = np.clip(below + ties / 2.0, 0.5 / count, 1.0 - 0.5 / count)
    centred = resampled.values - mean
    spread = (centred**2).sum(axis=1) ** 1.5
    # Of a mean, the jackknife's acceleration (eq. 14.15) is its skewness over 6 sqrt(n).
    acceleration = np.divide(
        (centred**3).sum(axis=1), 6.0 * spread, out=np.zeros_like(spread), where=spread > _SAME
    )
    found = np.empty((len(share), 2))
    for row, (proportion, slope) in enumerate(zip(share, acceleration, strict=True)):
        bias = normal.inv_cdf(float(proportion))
        for end, probability in enumerate((tail, 1.0 - tail)):
            shifted = bias + normal.inv_cdf(probability)
            denominator = 1.0 - slope * shifted
            # At or below 0 the formula has no meaning; its limit is the outermost resample.
            z = bias + shifted / denominator if denominator > 0 else np.sign(shifted) * 40.0
            found[row, end] = normal.cdf(float(z))
    return found


def _studentised(resampled: Resampled, tail: float) -> Floats:
    if resampled.squares is None:
        raise ConfigError("the studentised interval needs the mean squares of the resamples.")
    n = resampled.values.shape[1]
    mean = resampled.values.mean(axis=1, keepdims=True)
    error = resampled.values.std(axis=1, keepdims=True) / np.sqrt(n)
    errors = np.sqrt(np.maximum(resampled.squares - resampled.means**2, 0.0) / n)
    away = resampled.means - mean
    away[np.abs(away) <= _SAME] = 0.0
    t = np.divide(away, errors, out=np.sign(away) * _FAR, where=errors > _SAME)
    low, high = _quantiles(np.sort(t, axis=1), np.tile([tail, 1.0 - tail], (len(t), 1))).T
    # The upper quantile of t bounds the mean from below, and the other way round.
    return np.stack([mean[:, 0] - high * error[:, 0], mean[:, 0] - low * error[:, 0]], axis=1)


def _quantiles(ordered: Floats, probabilities: Floats) -> Floats:
    """Quantiles of each sorted row (r, b) at its own probabilities (r, p), interpolated linearly: (r, p)."""
    positions = np.clip(probabilities, 0.0, 1.0) * (ordered.shape[1] - 1)
    lower = np.floor(positions).astype(np.int64)
    upper = np.minimum(lower + 1, ordered.shape[1] - 1)
    rest = positions - lower
    below = np.take_along_axis(ordered, lower, axis=1)
    above = np.take_along_axis(ordered, upper, axis=1)
    found: Floats = below + (above - below) * rest
    return found
