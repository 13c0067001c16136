"""What a variant answers on development queries, against the fp32 file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stm_retriever import Embedder
from stm_training.export.variant_parity import DevChange

if TYPE_CHECKING:
    from stm_training.pipeline.collections import Problem

# Enough to see half a point on most collections, and minutes at most with a small model.
MAX_QUERIES = 300
MAX_PASSAGES = 1000


def read_dev(
    folder: Path, split: str = "dev", *, max_queries: int = MAX_QUERIES, max_passages: int = MAX_PASSAGES
) -> Problem:
    """Reads development queries from a BEIR folder, cut to a size that suits a comparison.

    Args:
        folder: With ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.
        split: Which judgements.
        max_queries: The first queries are taken, in the order of the judgements.
        max_passages: All judged passages, and a seeded sample of others up to this many.

    Raises:
        DataError: If the folder is none, lacks the split, or holds a bad row.
    """
    from stm_training.data.reading import read_beir
    from stm_training.pipeline.collections import Problem, judged_and_sample

    collection = read_beir(folder, split, allow_title_only=True)
    names = list(collection.queries)[:max_queries]
    qrels = {name: collection.qrels[name] for name in names}
    passages = judged_and_sample(list(collection.corpus.values()), qrels, max_passages, seed=0)
    return Problem(collection.name, passages, {name: collection.queries[name] for name in names}, qrels)


class DevQuality:
    """nDCG@10 of the fp32 file on some problems, and what others change.

    Args:
        problems: The development queries; with none, :meth:`changes` gives nothing.
        fp32: The fp32 embedder; encodes each problem once.
    """

    def __init__(self, problems: Sequence[Problem], fp32: Embedder) -> None:
        self._problems = problems
        self._fp32 = [_ndcg(fp32, problem) for problem in problems]

    def changes(self, variant: Embedder) -> list[DevChange]:
        """Encodes each problem with a variant and compares."""
        return [
            DevChange(problem.name, len(problem.queries), before, _ndcg(variant, problem))
            for problem, before in zip(self._problems, self._fp32, strict=True)
        ]


def _ndcg(embedder: Embedder, problem: Problem) -> float:
    from stm_training.evaluate.metrics import mean
    from stm_training.pipeline.scoring import score_vectors

    queries = embedder.encode_query(list(problem.queries.values()))
    documents = embedder.encode_document([passage.content for passage in problem.passages])
    return mean(score_vectors(queries, documents, problem)["ndcg@10"])
