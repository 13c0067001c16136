"""Making, training and opening a vector index by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.errors import require
from stm_retriever.index.kinds.approximate import ApproximateIndex
from stm_retriever.index.kinds.files import read_rows
from stm_retriever.index.kinds.flat import FlatIndex
from stm_retriever.index.kinds.protocol import Sample, VectorIndex
from stm_retriever.index.kinds.recipes import (
    FACTORY,
    KINDS,
    Recipe,
    check_kind,
    lists_for,
    recipe_of,
    resolve_kind,
    train,
)

Advice = Callable[[int], str | None]


def new_index(
    kind: str,
    dimension: int,
    *,
    expected: int = 0,
    sample: Sample | None = None,
    parameters: Mapping[str, int | float] | None = None,
) -> VectorIndex:
    """Make an empty index of a kind.

    Args:
        kind: One of :data:`~stm_retriever.index.kinds.recipes.KINDS`, ``"auto"`` or ``"factory:<string>"``.
        dimension: Of the vectors.
        expected: How many vectors it will hold; ``"auto"`` and the number of inverted lists go by it.
        sample: Gives vectors to train on. With too few, the index holds its vectors flat, and is stale once
            there would be enough.
        parameters: Search parameters, as :class:`ApproximateIndex` takes them.

    Raises:
        ConfigError: If there is no such kind, or FAISS does not know the factory string.
    """
    actual, _ = resolve_kind(kind, count=expected, dimension=dimension)
    advice = _outgrown(actual, dimension) if kind == "auto" else None
    if actual == "flat":
        return FlatIndex(dimension, advice=advice)
    recipe = recipe_of(actual)
    index = _trained(recipe, dimension, expected, sample)
    if index is None:
        return FlatIndex(dimension, advice=_waiting(recipe))
    if type(index).__name__ == "IndexFlatIP":  # "factory:Flat"
        return FlatIndex(dimension)
    return ApproximateIndex(recipe, index, parameters=parameters, advice=advice)


def load_index(
    kind: str,
    dimension: int,
    path: Path,
    *,
    mmap: bool = True,
    parameters: Mapping[str, int | float] | None = None,
) -> VectorIndex:
    """Load a saved index.

    Args:
        kind: As for :func:`new_index`; ``"auto"`` takes what the file holds.
        dimension: Of the vectors.
        path: The file.
        mmap: Leave the vectors in the file, which must not change; they are copied before the first change.
        parameters: Search parameters that differ from those in the file.

    Raises:
        ConfigError: If there is no such kind.
        ValueError: If the file holds another kind or dimension.
        RuntimeError: If FAISS cannot read it.
    """
    check_kind(kind)
    faiss = require("faiss", extra="cpu", purpose="the vector index")
    index, labels = read_rows(path, dimension, mmap=mmap)
    if type(index) is faiss.IndexFlatIP:
        advice = _outgrown("flat", dimension) if kind == "auto" else None
        if kind not in ("auto", "flat"):
            advice = _waiting(recipe_of(kind))
        return FlatIndex(dimension, advice=advice, opened=(index, labels), mapped=mmap)
    actual = kind if kind != "auto" else _kind_of(faiss, index, dimension)
    if actual == "flat" or not _is(faiss, index, recipe_of(actual), dimension):
        raise ValueError(f"holds a {type(index).__name__} where an index of the kind {kind!r} is expected")
    advice = _outgrown(actual, dimension) if kind == "auto" else None
    return ApproximateIndex(
        recipe_of(actual), index, labels, mapped=mmap, parameters=parameters, advice=advice
    )


def _trained(recipe: Recipe, dimension: int, expected: int, sample: Sample | None) -> Any:
    """Make the FAISS index and train it if it needs that; None if there is not enough to train on."""
    faiss = require("faiss", extra="cpu", purpose="the vector index")
    if recipe.least == 0:
        return recipe.make(faiss, dimension, 0)
    if recipe.name.startswith(FACTORY):
        index = recipe.make(faiss, dimension, 0)
        if index.is_trained:
            return index
    if sample is None or expected < recipe.least:
        return None
    vectors = np.ascontiguousarray(sample(recipe.training_size(expected)), np.float32)
    if len(vectors) < recipe.least:
        return None
    if not recipe.name.startswith(FACTORY):
        index = recipe.make(faiss, dimension, lists_for(expected, len(vectors)))
    train(index, vectors)
    return index


def _waiting(recipe: Recipe) -> Advice:
    def advice(count: int) -> str | None:
        if count < recipe.least or recipe.least == 0:
            return None
        return f"it holds its {count} vectors flat, and {recipe.least} are enough to train {recipe.name!r}"

    return advice


def _outgrown(actual: str, dimension: int) -> Advice:
    def advice(count: int) -> str | None:
        better, why = resolve_kind("auto", count=count, dimension=dimension)
        return None if KINDS.index(better) <= KINDS.index(actual) else f"{better!r} suits it better: {why}"

    return advice


def _kind_of(faiss: Any, index: Any, dimension: int) -> str:
    for kind in KINDS[1:]:
        if _is(faiss, index, recipe_of(kind), dimension):
            return kind
    return "flat"


def _is(faiss: Any, index: Any, recipe: Recipe, dimension: int) -> bool:
    """Tell whether a FAISS index is of the type that a recipe makes."""
    if not isinstance(index, type(recipe.make(faiss, dimension, 4))):
        return False
    return recipe.name.startswith(FACTORY) or getattr(index, "metric_type", 0) in (
        faiss.METRIC_INNER_PRODUCT,
        faiss.METRIC_L2 if recipe.name == "binary" else faiss.METRIC_INNER_PRODUCT,
    )
