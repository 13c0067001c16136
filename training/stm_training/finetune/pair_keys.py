"""What makes two training rows the same document or the same query."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from stm_training.data.records import Pair

Key = tuple[str, str]


def text_key(text: str) -> str:
    """A text with case and white space evened out."""
    return " ".join(text.casefold().split())


def row_keys(pair: Pair) -> frozenset[Key]:
    """Keys of a pair's query and positive; pairs that share one must not meet in a batch.

    Ids and texts both count: two documents may carry the same text, and a query may be written twice.
    """
    keys = {("query", text_key(pair.query)), ("text", text_key(pair.positive))}
    if pair.query_id is not None:
        keys.add(("query_id", pair.query_id))
    if pair.positive_id is not None:
        keys.add(("document_id", pair.positive_id))
    return frozenset(keys)


def known_positives(pairs: Iterable[Pair]) -> dict[str, frozenset[str]]:
    """Query key -> keys of all texts that the training data call relevant to it."""
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        found[text_key(pair.query)].add(text_key(pair.positive))
    return {query: frozenset(texts) for query, texts in found.items()}


def false_negatives(
    queries: Sequence[str], texts: Sequence[str], known: dict[str, frozenset[str]]
) -> list[list[bool]]:
    """Mark the texts that are known to be relevant to each query, and so are none of its negatives.

    Args:
        queries: b queries.
        texts: m documents' texts.
        known: See :func:`known_positives`.

    Returns:
        b rows of m booleans.
    """
    keys = [text_key(text) for text in texts]
    relevant = [known.get(text_key(query), frozenset()) for query in queries]
    return [[key in row for key in keys] for row in relevant]
