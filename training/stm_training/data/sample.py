"""Held-out documents and the synthetic collections made from them, where no user has asked anything yet."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from stm_retriever.errors import ConfigError, DataError
from stm_training.data.records import Collection, Pair, Passage
from stm_training.data.splits import DEFAULT_FRACTIONS, hash_split


def split_documents(
    passages: Iterable[Passage], *, seed: int, fractions: Mapping[str, float] = DEFAULT_FRACTIONS
) -> dict[str, list[Passage]]:
    """Divide a corpus into documents to train on and documents to hold out.

    All pieces of one document fall on the same side, so that nothing of a held-out document is trained on.

    Args:
        passages: The corpus.
        seed: See :func:`stm_training.data.splits.hash_split`.
        fractions: Share of each part.

    Returns:
        Passages by part, in corpus order.
    """
    parts: dict[str, list[Passage]] = {name: [] for name in fractions}
    for passage in passages:
        document = passage.parent_id or passage.id
        parts[hash_split(f"document\0{document}", seed=seed, fractions=fractions)].append(passage)
    return parts


def sample_passages(passages: Sequence[Passage], count: int, *, seed: int) -> list[Passage]:
    """At most ``count`` passages, drawn without replacement, in corpus order.

    Raises:
        ConfigError: If ``count`` is below 1.
    """
    if count < 1:
        message = f"A sample of {count} passages was asked for; ask for at least 1."
        raise ConfigError(message)
    if count >= len(passages):
        return list(passages)
    chosen = sorted(random.Random(seed).sample(range(len(passages)), count))
    return [passages[index] for index in chosen]


def synthetic_collection(
    name: str, corpus: Iterable[Passage], pairs: Iterable[Pair], held_out: Iterable[Passage]
) -> Collection:
    """A collection whose queries were synthesized from held-out documents.

    The corpus is whole (the retriever has to find the document among all); only queries of held-out
    documents count, each relevant to the passage that it was written from. Figures on such a collection
    prove something about synthetic queries only, and must be named so.

    Args:
        name: Of the collection.
        corpus: Every passage.
        pairs: Synthesized pairs; those of other documents are left out.
        held_out: The passages of this part.

    Returns:
        The collection.

    Raises:
        DataError: If no query is left.
    """
    allowed = {passage.id for passage in held_out}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for pair in pairs:
        if pair.positive_id is None or pair.positive_id not in allowed:
            continue
        query_id = pair.query_id or f"{pair.positive_id}/{pair.kind or 'query'}"
        if query_id in queries:
            query_id = f"{query_id}/{len(queries)}"
        queries[query_id] = pair.query
        qrels[query_id] = {pair.positive_id: 1}
    if not queries:
        message = (
            f"No synthetic query of {name!r} is left for its {len(allowed)} held-out documents, so nothing "
            "could be proven. Hold out more documents, or look at what the filters dropped."
        )
        raise DataError(message)
    return Collection(name, {p.id: p for p in corpus}, queries, qrels)
