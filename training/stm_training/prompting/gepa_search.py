"""GEPA (Agrawal et al. 2025, arXiv 2507.19457) on the query prompt, through the ``gepa`` package.

Written against gepa 0.1.4, whose traps shape this module:

- an adapter without ``propose_new_texts = None`` proposes nothing and spends its whole budget;
- ``cache_evaluation`` mixes up the scores of its two data sets, so it stays off (our scorer remembers);
- without a logger it prints;
- its ``run_dir`` keeps the state as a pickle and forgets the random generator, so that a resumed search
  takes another path. Instead the search is replayed: answers come from the journal and scores from a file,
  so a killed search ends as an uninterrupted one, and no pickle is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm_retriever.errors import require
from stm_training.pipeline.collections import Problem, document_id
from stm_training.prompting.candidates import make_prompt
from stm_training.prompting.reflection import Reflector
from stm_training.prompting.scoring import PromptScorer, QueryResult
from stm_training.prompting.settings import GepaSection

logger = logging.getLogger(__name__)

COMPONENT = "instruction"
_EXCERPT = 200
_MOST_KEPT = 10

Progress = Callable[[int, int, str], None]
Trace = tuple[str, QueryResult]


@dataclass(frozen=True)
class GepaResult:
    """What a search brought.

    Attributes:
        prompts: New prompts that GEPA kept, best on its own queries first, at most 10.
        metric_calls: Scored queries.
        reflections: Instructions asked for.
        failures: Why reflections brought nothing.
    """

    prompts: tuple[str, ...]
    metric_calls: int
    reflections: int
    failures: tuple[str, ...]


class _Quiet:
    """GEPA's logger; its lines hold prompts and scores, no documents."""

    def log(self, message: str) -> None:
        logger.debug("%s", message)


class RetrievalAdapter:
    """What GEPA sees of us: the score of an instruction on some queries, and what went wrong there.

    Args:
        scorer: Scores prompts.
        plain: The model's own prompt, which GEPA starts from, verbatim.
        template: How any other instruction becomes a prompt.
        batch_type: GEPA's ``EvaluationBatch``.
        progress: Called with the metric calls so far.
    """

    propose_new_texts = None

    def __init__(
        self,
        scorer: PromptScorer,
        *,
        plain: str,
        template: str,
        batch_type: Callable[..., Any],
        progress: Callable[[int], None] = lambda calls: None,
    ) -> None:
        self._scorer = scorer
        self._plain = plain
        self._template = template
        self._batch_type = batch_type
        self._progress = progress
        self._passages = {passage.id: passage for passage in scorer.problem.passages}
        self._wanted = _wanted_texts(scorer.problem)
        self.metric_calls = 0

    def prompt_of(self, candidate: Mapping[str, str]) -> str:
        """The prompt that a candidate stands for."""
        text = candidate[COMPONENT]
        return text if text == self._plain else make_prompt(text, self._template)

    def evaluate(
        self, batch: Sequence[str], candidate: Mapping[str, str], capture_traces: bool = False
    ) -> Any:
        """nDCG@10 of a candidate for the queries of these ids."""
        results = self._scorer.score(self.prompt_of(candidate), batch)
        self.metric_calls += len(batch)
        self._progress(self.metric_calls)
        scores = [result.ndcg for result in results]
        traces = list(zip(batch, results, strict=True)) if capture_traces else None
        return self._batch_type(outputs=list(scores), scores=scores, trajectories=traces)

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """Feedback, the misses first: what was wanted, where it stood, and what stood above it."""
        traces: list[Trace] = sorted(eval_batch.trajectories, key=lambda trace: trace[1].ndcg)
        return {name: [self._record(trace) for trace in traces] for name in components_to_update}

    def _record(self, trace: Trace) -> dict[str, Any]:
        query_id, result = trace
        if result.rank is None:
            where = "MISSED: the wanted document is not among the first 100"
        elif result.missed:
            where = f"MISSED: the wanted document stands at place {result.rank}, not among the first ten"
        else:
            where = f"found: the wanted document stands at place {result.rank}"
        above = [_excerpt(self._passages[name].content) for name in result.above]
        return {
            "Inputs": {"query": self._scorer.problem.queries[query_id]},
            "Generated Outputs": {"ranked above the wanted document": above},
            "Feedback": f"{where}. Wanted: {self._wanted[query_id]}",
        }


def as_examples(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """GEPA's records as text for the reflection."""
    examples = []
    for number, record in enumerate(records, start=1):
        above = record["Generated Outputs"]["ranked above the wanted document"]
        wrong = "\n".join(f"  wrongly above it: {text}" for text in above)
        text = f"{number}. query: {record['Inputs']['query']}\n  {record['Feedback']}"
        examples.append(f"{text}\n{wrong}" if wrong else text)
    return examples


def run_gepa(
    scorer: PromptScorer,
    query_ids: Sequence[str],
    reflector: Reflector,
    plain: str,
    template: str,
    settings: GepaSection,
    seed: int = 0,
    progress: Progress | None = None,
) -> GepaResult:
    """Search for instructions on some development queries.

    Args:
        scorer: Scores prompts.
        query_ids: The queries that GEPA may see.
        reflector: Writes new instructions.
        plain: The model's own prompt, where the search begins.
        template: How an instruction becomes a prompt.
        settings: Budget and minibatch.
        seed: The same seed, answers and scores give the same search.
        progress: Called with metric calls done, their budget, and a note.

    Returns:
        The prompts that GEPA kept.

    Raises:
        LLMError: If the language model cannot be used.
        MissingExtraError: If ``gepa`` is not installed.
    """
    gepa = require("gepa", extra="train", purpose="GEPA prompt optimisation")
    core = require("gepa.core.adapter", extra="train", purpose="GEPA prompt optimisation")
    budget = settings.metric_calls

    def advance(calls: int) -> None:
        if progress is not None:
            progress(min(calls, budget), budget, f"GEPA, {reflector.done} reflections")

    adapter = RetrievalAdapter(
        scorer, plain=plain, template=template, batch_type=core.EvaluationBatch, progress=advance
    )

    def propose(
        candidate: dict[str, str], dataset: Mapping[str, Sequence[Mapping[str, Any]]], components: list[str]
    ) -> dict[str, str]:
        new = reflector.propose(candidate[COMPONENT], as_examples(dataset[COMPONENT]))
        return {} if new is None else {COMPONENT: new}

    ids = list(query_ids)
    result = gepa.optimize(
        seed_candidate={COMPONENT: plain},
        trainset=ids,
        valset=ids,
        adapter=adapter,
        custom_candidate_proposer=propose,
        reflection_minibatch_size=min(settings.minibatch, len(ids)),
        max_metric_calls=budget,
        stop_callbacks=[lambda state: reflector.stopped],
        cache_evaluation=False,
        logger=_Quiet(),
        seed=seed,
        raise_on_exception=True,
    )
    reflector.raise_error()
    return GepaResult(
        prompts=_best_prompts(adapter, result, plain),
        metric_calls=adapter.metric_calls,
        reflections=reflector.done,
        failures=tuple(reflector.failures),
    )


def _best_prompts(adapter: RetrievalAdapter, result: Any, plain: str) -> tuple[str, ...]:
    scored = sorted(
        zip(result.val_aggregate_scores, map(adapter.prompt_of, result.candidates), strict=True),
        key=lambda pair: (-pair[0], len(pair[1]), pair[1]),
    )
    return tuple(dict.fromkeys(prompt for _, prompt in scored if prompt != plain))[:_MOST_KEPT]


def _wanted_texts(problem: Problem) -> dict[str, str]:
    """Excerpt of the first relevant passage, by query."""
    first: dict[str, str] = {}
    for passage in problem.passages:
        first.setdefault(document_id(passage), passage.content)
    texts = {}
    for query_id, grades in problem.qrels.items():
        wanted = [name for name, grade in grades.items() if grade > 0 and name in first]
        texts[query_id] = _excerpt(first[wanted[0]]) if wanted else "(not in the collection)"
    return texts


def _excerpt(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _EXCERPT else f"{plain[:_EXCERPT].rsplit(' ', 1)[0]} ..."
