"""Documents in, training pairs out: ask, parse, filter, and say what became of everything."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair, Passage
from stm_training.llm.base import LLM, SendsDocuments
from stm_training.llm.journal import Journal
from stm_training.synthesize.asking import Asker, Failure, TaskFailed
from stm_training.synthesize.extractive import EXTRACTIVE_KINDS, ExtractiveGenerator
from stm_training.synthesize.filters import (
    DropLog,
    Dropped,
    Limits,
    SeenQueries,
    negative_problem,
    query_problem,
)
from stm_training.synthesize.hard_negatives import DEFAULT_INSTRUCTION, negative_request, negative_task
from stm_training.synthesize.parsing import parse_document, parse_queries
from stm_training.synthesize.prompts import Template, load_template
from stm_training.synthesize.queries import (
    DEFAULT_LLM_KINDS,
    LLM_KINDS,
    Sampling,
    check_kinds,
    query_request,
    query_task,
)

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SynthesisResult:
    """What a synthesis brought.

    Attributes:
        pairs: In the order of passages, then of kinds.
        counts: ``documents``, ``queries`` (parsed), ``pairs`` (kept), ``negatives`` (kept), ``asked``,
            ``reused`` (from the journal), ``reasked``, ``failures``, ``prompt_tokens``,
            ``completion_tokens``, and ``pairs_<kind>`` for each kind.
        dropped: What each filter dropped, with examples.
        failures: Every task that brought nothing, with its reason.
        sources: Pairs by what wrote them.
        notes: What a reader of the figures should know.
    """

    pairs: list[Pair]
    counts: dict[str, int]
    dropped: dict[str, Dropped] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Written:
    """What a model wrote for one passage, filtered on its own."""

    queries: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, text, written by)
    parsed: int = 0
    negative: str | None = None
    negative_kind: str = ""
    drops: list[tuple[str, str]] = field(default_factory=list)  # (filter, text)
    failures: list[Failure] = field(default_factory=list)


def synthesize(
    passages: Sequence[Passage],
    llm: LLM | None = None,
    *,
    kinds: Sequence[str] | None = None,
    negatives: bool = True,
    journal: Journal | Path | str | None = None,
    concurrency: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    share_negative: bool = True,
    held_out_queries: Iterable[str] = (),
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    instruction: str = DEFAULT_INSTRUCTION,
    templates: Path | str | None = None,
    max_reasks: int = 2,
    retry_failures: bool = False,
    corpus: Sequence[Passage] | None = None,
) -> SynthesisResult:
    """Make training pairs from passages.

    With a model, one request is made per passage and kind, and one for the passage's hard negative, which
    is written for its first query that passes the filters (the question, where kinds begin with it). The
    result depends on the answers alone, not on the order in which they come.

    Args:
        passages: What to write queries for.
        llm: The model; ``None``: the extractive generator.
        kinds: Kinds of queries; ``None``: the generator's defaults.
        negatives: Ask for hard negatives (the extractive generator has none, and says so).
        journal: A path or an open journal; needed with a model.
        concurrency: Passages worked on at once; ``None``: the model's ``concurrency``, else 1.
        seed: Of everything that is drawn.
        progress: Called with (passages done, passages) from this thread.
        share_negative: Give a passage's negative to all its pairs, not only to the one it was written for.
        held_out_queries: Development and test queries; synthetic ones equal to them are dropped.
        sampling: How the model is asked; its ``seed`` is replaced by ``seed``.
        limits: Of the filters.
        instruction: The retrieval task, for the prompt that asks for hard negatives.
        templates: Folder with changed prompt templates.
        max_reasks: How often an unusable answer is put back to the model.
        retry_failures: Ask again what failed in an earlier run with this journal.
        corpus: Whose word frequencies the extractive generator takes; ``None``: those of ``passages``.

    Returns:
        Pairs, counts, what was dropped, and what failed.

    Raises:
        ConfigError: For unusable settings, or documents that would leave this machine unasked.
        LLMError: If the server cannot be reached or refuses the key; the journal is kept.
    """
    if llm is None:
        return _extract(passages, kinds, negatives, seed, progress, held_out_queries, limits, corpus)
    if journal is None:
        message = "A synthesis with a model needs a journal, or a crash would lose what was paid for."
        raise ConfigError(message)
    wanted = DEFAULT_LLM_KINDS if kinds is None else tuple(kinds)
    check_kinds(wanted, LLM_KINDS, "a language model")
    if isinstance(llm, SendsDocuments):
        llm.announce(len(passages))
    sampling = sampling or Sampling()
    with contextlib.ExitStack() as stack:
        if not isinstance(journal, Journal):
            journal = stack.enter_context(Journal(journal, retry_failures=retry_failures))
        asker = Asker(llm, journal, reask=load_template("reask", templates), max_reasks=max_reasks)
        writer = _Writer(
            asker=asker,
            kinds=wanted,
            negatives=negatives,
            sampling=Sampling(sampling.temperature, sampling.max_tokens, sampling.per_kind, seed),
            limits=limits or Limits(),
            instruction=instruction,
            query_templates={kind: load_template(f"query_{kind}", templates) for kind in wanted},
            negative_template=load_template("hard_negative", templates) if negatives else None,
        )
        workers = concurrency or int(getattr(llm, "concurrency", 1))
        written = _in_order(writer.write, passages, workers, progress)
        result = _collect(passages, written, share_negative, held_out_queries)
    for name in ("asked", "reused", "reasked", "prompt_tokens", "completion_tokens"):
        result.counts[name] = getattr(asker, name)
    _log(result)
    return result


@dataclass(frozen=True)
class _Writer:
    asker: Asker
    kinds: tuple[str, ...]
    negatives: bool
    sampling: Sampling
    limits: Limits
    instruction: str
    query_templates: Mapping[str, Template]
    negative_template: Template | None

    def write(self, passage: Passage) -> _Written:
        """All tasks of one passage, one after the other."""
        done = _Written()
        for kind in self.kinds:
            self._write_queries(passage, kind, done)
        if self.negative_template is not None and done.queries:
            self._write_negative(passage, self.negative_template, done)
        return done

    def _write_queries(self, passage: Passage, kind: str, done: _Written) -> None:
        request = query_request(passage, kind, self.query_templates[kind], self.sampling)
        parse = partial(parse_queries, limit=self.sampling.per_kind)
        try:
            queries, model = self.asker.ask(passage.id, query_task(kind), request, parse)
        except TaskFailed as failed:
            done.failures.append(failed.failure)
            return
        for query in queries:
            done.parsed += 1
            problem = query_problem(query, passage, self.limits)
            if problem is None:
                done.queries.append((kind, query, model))
            else:
                done.drops.append((problem, query))

    def _write_negative(self, passage: Passage, template: Template, done: _Written) -> None:
        kind, query, _ = done.queries[0]
        request = negative_request(
            passage, query, kind, template, self.sampling, instruction=self.instruction
        )
        try:
            negative, _ = self.asker.ask(passage.id, negative_task(kind), request, parse_document)
        except TaskFailed as failed:
            done.failures.append(failed.failure)
            return
        problem = negative_problem(negative, passage, self.limits)
        if problem is None:
            done.negative, done.negative_kind = negative, kind
        else:
            done.drops.append((problem, negative))


def _in_order(
    work: Callable[[Passage], _Written], passages: Sequence[Passage], workers: int, progress: Progress | None
) -> list[_Written]:
    """Work on passages in a pool with few of them waiting; stop the rest at the first error."""
    results: list[_Written | None] = [None] * len(passages)
    places: Iterator[int] = iter(range(len(passages)))
    done = 0
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="stm-synthesis") as pool:
        running: dict[Future[_Written], int] = {}
        try:
            while True:
                for place in places:
                    running[pool.submit(work, passages[place])] = place
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()
                    done += 1
                if progress is not None:
                    progress(done, len(passages))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [result for result in results if result is not None]


def _collect(
    passages: Sequence[Passage],
    written: Sequence[_Written],
    share_negative: bool,
    held_out_queries: Iterable[str],
) -> SynthesisResult:
    drops, seen = DropLog(), SeenQueries(held_out_queries)
    pairs: list[Pair] = []
    failures: list[Failure] = []
    negatives = 0
    for passage, done in zip(passages, written, strict=True):
        failures.extend(done.failures)
        negatives += done.negative is not None
        for name, text in done.drops:
            drops.add(name, passage.id, text)
        for place, (kind, query, model) in enumerate(done.queries):
            problem = seen.problem(query)
            if problem is not None:
                drops.add(problem, passage.id, query)
                continue
            own = done.negative is not None and (share_negative or kind == done.negative_kind)
            pairs.append(
                Pair(
                    query=query,
                    positive=passage.content,
                    negatives=(done.negative,) if own and done.negative is not None else (),
                    query_id=f"{passage.id}/{kind}/{place}",
                    positive_id=passage.id,
                    source=model,
                    kind=kind,
                )
            )
    parsed = sum(done.parsed for done in written)
    return _result(pairs, len(passages), parsed, negatives, drops, failures)


def _result(
    pairs: list[Pair],
    documents: int,
    queries: int,
    negatives: int,
    drops: DropLog,
    failures: list[Failure],
) -> SynthesisResult:
    counts = {
        "documents": documents,
        "queries": queries,
        "pairs": len(pairs),
        "negatives": negatives,
        "failures": len(failures),
    }
    counts.update({f"pairs_{kind}": n for kind, n in sorted(Counter(pair.kind for pair in pairs).items())})
    sources = dict(sorted(Counter(pair.source for pair in pairs).items()))
    return SynthesisResult(pairs, counts, dict(sorted(drops.by_filter.items())), failures, sources)


def _extract(
    passages: Sequence[Passage],
    kinds: Sequence[str] | None,
    negatives: bool,
    seed: int,
    progress: Progress | None,
    held_out_queries: Iterable[str],
    limits: Limits | None,
    corpus: Sequence[Passage] | None,
) -> SynthesisResult:
    wanted = EXTRACTIVE_KINDS if kinds is None else tuple(kinds)
    check_kinds(wanted, EXTRACTIVE_KINDS, "the extractive generator (no model is configured)")
    limits = limits or Limits()
    generator = ExtractiveGenerator.fit(passages if corpus is None else corpus, seed=seed)
    drops, seen = DropLog(), SeenQueries(held_out_queries)
    pairs: list[Pair] = []
    made = 0
    for done, passage in enumerate(passages, start=1):
        for kind in wanted:
            pair = generator.pair(passage, kind)
            if pair is None:
                continue
            made += 1
            # Only the kinds that were taken out of the positive cannot be copied from it.
            unbounded = Limits(limits.shortest, limits.longest, copied_run=10**9, copied_whole=10**9)
            problem = query_problem(pair.query, passage, unbounded) or seen.problem(pair.query)
            if problem is None:
                pairs.append(pair)
            else:
                drops.add(problem, passage.id, pair.query)
        if progress is not None:
            progress(done, len(passages))
    result = _result(pairs, len(passages), made, 0, drops, [])
    result.counts.update(asked=0, reused=0, reasked=0, prompt_tokens=0, completion_tokens=0)
    result.notes.append("Queries were extracted from the documents (no language model wrote any).")
    if negatives:
        result.notes.append("The extractive generator writes no hard negatives.")
    _log(result)
    return result


def _log(result: SynthesisResult) -> None:
    dropped = sum(one.count for one in result.dropped.values())
    logger.info(
        "%d pairs from %d documents; %d texts dropped by filters; %d tasks failed",
        len(result.pairs),
        result.counts["documents"],
        dropped,
        len(result.failures),
    )
