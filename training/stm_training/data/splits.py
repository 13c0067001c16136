"""Splits that are made once and never move: a seeded hash of the query's id decides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Collection

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
HALVES: Mapping[str, float] = {"dev": 0.5, "test": 0.5}


def hash_split(query_id: str, *, seed: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """The split that a query belongs to, whatever other queries there are.

    Args:
        query_id: The query's id.
        seed: Another seed gives another split.
        fractions: Share of each split, in order; they sum to 1.

    Returns:
        One of the names in ``fractions``.

    Raises:
        ConfigError: If the fractions are negative or do not sum to 1.
    """
    _check_fractions(fractions)
    digest = hashlib.sha256(f"{seed}\0{query_id}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    border = 0.0
    last = ""
    for name, fraction in fractions.items():
        if fraction <= 0:
            continue
        border += fraction
        last = name
        if position < border:
            return name
    return last  # the borders sum to 1 only up to rounding


def split_collection(
    collection: Collection, *, seed: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS
) -> dict[str, Collection]:
    """Divide a collection's queries; the corpus is shared by every part.

    Args:
        collection: What is published as one split.
        seed: See :func:`hash_split`.
        fractions: See :func:`hash_split`.

    Returns:
        A collection per name in ``fractions``, named ``<collection>/<name>``; a part may be empty.
    """
    _check_fractions(fractions)
    parts: dict[str, list[str]] = {name: [] for name in fractions}
    for query_id in collection.queries:
        parts[hash_split(query_id, seed=seed, fractions=fractions)].append(query_id)
    return {
        name: Collection(
            name=f"{collection.name}/{name}",
            corpus=collection.corpus,
            queries={i: collection.queries[i] for i in ids},
            qrels={i: collection.qrels[i] for i in ids if i in collection.qrels},
        )
        for name, ids in parts.items()
    }


def halves(collection: Collection, seed: int) -> tuple[Collection, Collection]:
    """The development and the test half of a guard's queries.

    Raises:
        DataError: If a half has no query.
    """
    parts = split_collection(collection, seed=seed, fractions=HALVES)
    for name, part in parts.items():
        if not part.queries:
            message = (
                f"The {name} half of {collection.name!r} ({len(collection.queries)} queries, seed {seed}) is "
                "empty, so it can guard nothing. Use a collection with more queries."
            )
            raise DataError(message)
    return parts["dev"], parts["test"]


def _check_fractions(fractions: Mapping[str, float]) -> None:
    values = list(fractions.values())
    if not values or min(values) < 0 or not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        message = f"Split fractions {dict(fractions)} must not be negative and must sum to 1."
        raise ConfigError(message)
