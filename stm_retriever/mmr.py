"""Maximal marginal relevance: near the query, and unlike what was taken already."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError


def maximal_marginal_relevance(
    query: npt.ArrayLike, vectors: npt.ArrayLike, *, k: int, lambda_mult: float = 0.5
) -> list[int]:
    """Choose k vectors one by one (Carbonell and Goldstein, SIGIR 1998, section 2).

    The next one is that with the greatest ``lambda_mult * cos(query, v) - (1 - lambda_mult) * max cos(v,
    chosen)``; of equal ones the first. The first choice is the nearest to the query, whatever the lambda, as
    in LangChain.

    Args:
        query: (dimension,), not zero.
        vectors: (n, dimension), none zero.
        k: How many to choose; at most n come back.
        lambda_mult: 1 for the nearest alone, 0 for the most different.

    Returns:
        Indices into ``vectors`` in the order of choice.

    Raises:
        ConfigError: If ``lambda_mult`` is outside [0, 1].
    """
    if not 0.0 <= lambda_mult <= 1.0:
        raise ConfigError(
            f"lambda_mult={lambda_mult!r} weighs nearness against difference. Pass a number from 0 (most "
            "different) to 1 (nearest)."
        )
    rows = _unit(np.atleast_2d(np.asarray(vectors, dtype=np.float64)))
    count = min(k, len(rows)) if rows.size else 0
    if count < 1:
        return []
    nearness = rows @ _unit(np.asarray(query, dtype=np.float64)[None, :])[0]
    chosen = [int(np.argmax(nearness))]
    likeness = rows @ rows[chosen[0]]
    while len(chosen) < count:
        gain = lambda_mult * nearness - (1.0 - lambda_mult) * likeness
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        likeness = np.maximum(likeness, rows @ rows[chosen[-1]])
    return chosen


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    unit: npt.NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
