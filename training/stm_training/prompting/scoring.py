"""Score query prompts: documents are encoded once, queries once per prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stm_training.evaluate.ranking import rank
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.encode import encode_texts
from stm_training.pipeline.collections import Problem, document_id
from stm_training.pipeline.scoring import Vectors, score_passages
from stm_training.prompting.applying import query_prompt
from stm_training.prompting.kept_scores import KeptScores

NDCG = "ndcg@10"
TOP = 10
_DEPTH = 100
_SHOWN_ABOVE = 3


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a prompt brings for one query.

    Attributes:
        ndcg: nDCG@10.
        rank: Rank of the first relevant document, from 1; ``None`` if it is not among the first 100.
        above: Passages of the first documents that rank above it and are not relevant, at most 3.
    """

    ndcg: float
    rank: int | None
    above: tuple[str, ...]

    @property
    def missed(self) -> bool:
        """No relevant document is among the first ten."""
        return self.rank is None or self.rank > TOP


class PromptScorer:
    """Scores prompts on one problem; what was scored once is not encoded again.

    Args:
        backbone: The model; its own prompts are as before after each call.
        problem: Development queries and passages.
        documents: Passage vectors (m, d) by this very model, where they are known.
        kept: File that outlives the process, so that a killed search need not score anew.
    """

    def __init__(
        self,
        backbone: Backbone,
        problem: Problem,
        *,
        documents: Vectors | None = None,
        kept: Path | None = None,
    ) -> None:
        self._backbone = backbone
        self.problem = problem
        if documents is None:
            documents = encode_texts(backbone, [passage.content for passage in problem.passages], "document")
        self._documents = documents
        self._ids = [passage.id for passage in problem.passages]
        self._parent = {passage.id: document_id(passage) for passage in problem.passages}
        self._results: dict[tuple[str, str], QueryResult] = {}
        self._kept = None if kept is None else KeptScores(kept, self._inputs())
        if self._kept is not None:
            for prompt, query_id, ndcg, first, above in self._kept.rows:
                self._results[prompt, query_id] = QueryResult(ndcg, first, above)

    def score(self, prompt: str, query_ids: Sequence[str]) -> list[QueryResult]:
        """Results of these queries under a prompt, in their order."""
        missing = [name for name in dict.fromkeys(query_ids) if (prompt, name) not in self._results]
        if missing:
            found = self._rank(prompt, missing)
            self._results.update({(prompt, name): result for name, result in found.items()})
            if self._kept is not None:
                self._kept.append(prompt, {name: (r.ndcg, r.rank, r.above) for name, r in found.items()})
        return [self._results[prompt, name] for name in query_ids]

    def _rank(self, prompt: str, query_ids: Sequence[str]) -> dict[str, QueryResult]:
        part = replace(
            self.problem,
            queries={name: self.problem.queries[name] for name in query_ids},
            qrels={name: self.problem.qrels[name] for name in query_ids},
        )
        with query_prompt(self._backbone, prompt):
            # As served: bf16 rounds a query otherwise in every batch, and ranks near ties by that.
            vectors = encode_texts(self._backbone, list(part.queries.values()), "query", precision="fp32")
        depth = min(_DEPTH, len(self._ids))
        run = rank(vectors, self._documents, query_ids=list(query_ids), doc_ids=self._ids, k=depth)
        ndcg = score_passages(run, part)[NDCG]
        return {name: QueryResult(ndcg[name], *self._first_relevant(name, run[name])) for name in query_ids}

    def _first_relevant(
        self, query_id: str, hits: Sequence[tuple[str, float]]
    ) -> tuple[int | None, tuple[str, ...]]:
        grades = self.problem.qrels[query_id]
        seen: set[str] = set()
        above: list[str] = []
        for passage_id, _ in hits:
            document = self._parent[passage_id]
            if document in seen or (self.problem.exclude_self and document == query_id):
                continue
            seen.add(document)
            if grades.get(document, 0) > 0:
                return len(seen), tuple(above[:_SHOWN_ABOVE])
            above.append(passage_id)
        return None, tuple(above[:_SHOWN_ABOVE])

    def _inputs(self) -> str:
        """Hash of all that decides a score beside the prompt; the vectors stand for the model."""
        problem = self.problem
        digest = hashlib.sha256(self._documents.tobytes())
        for part in (self._ids, list(self._parent.values()), problem.exclude_self, self._backbone.max_length):
            digest.update(repr(part).encode("utf-8", "surrogatepass"))
        for name, text in problem.queries.items():
            row = (name, text, sorted(problem.qrels[name].items()))
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
