"""Vectors as they are stored: float32, int8 with a fixed scale, or one bit per component."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from stm_retriever.errors import ConfigError

logger = logging.getLogger(__name__)

Precision = Literal["float32", "int8", "binary"]
Vectors = npt.NDArray[np.float32]

_SPREAD = 8.0


def int8_limit(dimension: int) -> float:
    """The component that int8's 127 stands for: ``min(1, 8 / sqrt(dimension))``.

    A component of a unit vector is about 1 / sqrt(dimension) in size, so a scale up to 1 would leave most of
    the 255 steps unused. The limit depends on nothing but the dimension: vectors of different calls, models
    loaded on different days and different machines compare.
    """
    return min(1.0, _SPREAD / math.sqrt(dimension))


def check_precision(precision: str, dimension: int) -> None:
    """Raise :class:`ConfigError` unless vectors of this length can be stored so."""
    known = get_args(Precision)
    if precision not in known:
        raise ConfigError(f"precision={precision!r} is not known. Pass one of {', '.join(known)}.")
    if precision == "binary" and dimension % 8:
        raise ConfigError(
            f"precision='binary' packs 8 components into a byte, and vectors of length {dimension} do not "
            "fill their last one. Take precision='int8', or a dimension that 8 divides."
        )


def check_dimension(dimension: int | None, allowed: Sequence[int], full: int) -> int:
    """Returns the length of the vectors that was asked for.

    Raises:
        ConfigError: If the model was not trained to be cut there (Matryoshka; Kusupati et al. 2022).
    """
    choices = sorted({*allowed, full})
    if dimension is None:
        return full
    if dimension not in choices:
        raise ConfigError(
            f"dimension={dimension!r}: the model's vectors may be cut to {', '.join(map(str, choices))}; "
            "elsewhere the first components are not a representation that it was trained for. Pass one of "
            "these, or train with a Matryoshka loss."
        )
    return dimension


def stored_shape(count: int, dimension: int, precision: Precision) -> tuple[tuple[int, int], npt.DTypeLike]:
    """Shape and dtype of ``count`` stored vectors."""
    if precision == "binary":
        return (count, dimension // 8), np.uint8
    return (count, dimension), np.int8 if precision == "int8" else np.float32


def to_stored(vectors: Vectors, precision: Precision) -> npt.NDArray[Any]:
    """Bring unit vectors into the form in which they are stored.

    Args:
        vectors: float32 (n, d), of length 1.
        precision: ``"int8"``: ``round(127 * x / int8_limit(d))``, cut off at +-127. ``"binary"``: bit 1 where
            a component is above 0, eight to a byte, the first in the highest bit, as ``numpy.packbits`` does.

    Returns:
        float32 (n, d), int8 (n, d) or uint8 (n, d / 8).
    """
    if precision == "float32":
        return vectors
    if precision == "binary":
        return np.packbits(vectors > 0, axis=1)
    scaled = vectors * np.float32(127.0 / int8_limit(vectors.shape[1]))
    beyond = int((np.abs(scaled) > 127.5).sum())
    if beyond:
        logger.warning(
            "%d of %d components are beyond int8's range and were cut off; for a model with such large "
            "components compare the ranking with float32's before you store int8.",
            beyond,
            scaled.size,
        )
    stored: npt.NDArray[Any] = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return stored


def from_stored(stored: npt.NDArray[Any], precision: Precision) -> Vectors:
    """The unit vectors that stored ones stand for; binary ones give +-1 / sqrt(d) per component.

    Args:
        stored: What :func:`to_stored` gave.
        precision: How it was stored.

    Returns:
        float32 (n, d), of length 1.
    """
    if precision == "float32":
        return cast(Vectors, stored)
    if precision == "binary":
        signs = np.unpackbits(stored, axis=1).astype(np.float32) * 2 - 1
        return cast(Vectors, signs / np.float32(math.sqrt(signs.shape[1])))
    vectors = stored.astype(np.float32)
    return unit(vectors)


def unit(vectors: Vectors) -> Vectors:
    """Vectors of length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return cast(Vectors, vectors / np.where(norms > 0, norms, 1).astype(np.float32))
