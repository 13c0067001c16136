"""Documents in, training pairs out: ask, parse, filter, and say what became of everything."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair, Passage
from stm_training.llm.base import LLM, SendsDocuments
from stm_training.llm.budget import Meter
from stm_training.llm.journal import Journal
from stm_training.llm.telemetry import telemetry_off
from stm_training.synthesize.asking import Asker
from stm_training.synthesize.extractive import EXTRACTIVE_KINDS, ExtractiveGenerator
from stm_training.synthesize.filters import DropLog, Limits, SeenQueries, query_problem
from stm_training.synthesize.hard_negatives import DEFAULT_INSTRUCTION
from stm_training.synthesize.pool import in_order
from stm_training.synthesize.progress import SynthesisProgress, Watcher
from stm_training.synthesize.prompts import Template, load_template
from stm_training.synthesize.queries import DEFAULT_LLM_KINDS, LLM_KINDS, Sampling, check_kinds
from stm_training.synthesize.result import Outcome, SynthesisResult, collect, make_result
from stm_training.synthesize.styles import PLAIN, Style
from stm_training.synthesize.writer import Writer

__all__ = ["Progress", "SynthesisResult", "Watch", "synthesize"]

Progress = Callable[[int, int], None]
Watch = Callable[[SynthesisProgress], None]

logger = logging.getLogger(__name__)


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
    watch: Watch | None = None,
    share_negative: bool = True,
    held_out_queries: Iterable[str] = (),
    sampling: Sampling | None = None,
    style: Style = PLAIN,
    limits: Limits | None = None,
    instruction: str = DEFAULT_INSTRUCTION,
    templates: Path | str | None = None,
    max_reasks: int = 2,
    retry_failures: bool = False,
    meter: Meter | None = None,
    corpus: Sequence[Passage] | None = None,
) -> SynthesisResult:
    """Make training pairs from passages.

    With a model, one request is made per passage and kind, and one for the passage's hard negative, which
    is written for its first query that passes the filters (the question, where kinds begin with it). The
    result depends on the answers alone, not on the order in which they come. Where a budget ends, the rest
    is listed among the failures as not asked, and a later run with a larger one goes on from there.

    Args:
        passages: What to write queries for.
        llm: The model, or a mixture; ``None``: the extractive generator.
        kinds: Kinds of queries; ``None``: the generator's defaults.
        negatives: Ask for hard negatives (the extractive generator has none, and says so).
        journal: A path or an open journal; needed with a model.
        concurrency: Passages worked on at once; ``None``: the model's ``concurrency``, else 1.
        seed: Of everything that is drawn.
        progress: Called with (passages done, passages) from this thread.
        watch: Called likewise, with rate, tokens, cost and time left.
        share_negative: Give a passage's negative to all its pairs, not only to the one it was written for.
        held_out_queries: Development and test queries; synthetic ones equal to them are dropped.
        sampling: How the model is asked; its ``seed`` is replaced by ``seed``.
        style: Personas, difficulties and sample queries.
        limits: Of the filters.
        instruction: The retrieval task, for the prompt that asks for hard negatives.
        templates: Folder with changed prompt templates.
        max_reasks: How often an unusable answer is put back to the model.
        retry_failures: Ask again what failed in an earlier run with this journal.
        meter: Prices and the budget; what the journal holds already counts.
        corpus: Whose word frequencies the extractive generator takes; ``None``: those of ``passages``.

    Returns:
        Pairs, counts, what was dropped, and what failed.

    Raises:
        ConfigError: For unusable settings, or documents that would leave this machine unasked.
        LLMError: If the server cannot be reached or refuses the key; the journal is kept.
    """
    telemetry_off()
    if llm is None:
        return _extract(passages, kinds, negatives, seed, progress, held_out_queries, limits, corpus)
    chosen = load_templates(kinds, style, templates)
    if isinstance(llm, SendsDocuments):
        llm.announce(len(passages))
    meter = meter or Meter()
    with open_journal(journal, retry_failures) as opened:
        meter.count_earlier(opened.rows())
        reask = load_template("reask", templates)
        asker = Asker(llm, opened, reask=reask, max_reasks=max_reasks, meter=meter)
        writer = Writer(
            asker=asker,
            templates=chosen,
            negative_template=load_template("hard_negative", templates) if negatives else None,
            sampling=replace(sampling or Sampling(), seed=seed),
            style=style,
            limits=limits or Limits(),
            instruction=instruction,
        )
        written = in_order(
            writer.write,
            passages,
            workers=concurrency or int(getattr(llm, "concurrency", 1)),
            done=_teller(len(passages), asker, meter, progress, watch),
            stop=asker.stop,
        )
    result = with_usage(collect(passages, written, share_negative, held_out_queries), asker, meter)
    log_result(result)
    return result


def load_templates(
    kinds: Sequence[str] | None, style: Style, templates: Path | str | None
) -> Mapping[str, Template]:
    """The checked templates of the asked kinds, in their order.

    Raises:
        ConfigError: For unusable kinds, templates, or a style that they cannot carry.
    """
    wanted = DEFAULT_LLM_KINDS if kinds is None else tuple(kinds)
    check_kinds(wanted, LLM_KINDS, "a language model")
    chosen = {kind: load_template(f"query_{kind}", templates) for kind in wanted}
    style.check(chosen)
    return chosen


@contextlib.contextmanager
def open_journal(journal: Journal | Path | str | None, retry_failures: bool) -> Iterator[Journal]:
    """The caller's open journal, or one that is closed at the end.

    Raises:
        ConfigError: For none.
    """
    if journal is None:
        message = "A synthesis with a model needs a journal, or a crash would lose what was paid for."
        raise ConfigError(message)
    if isinstance(journal, Journal):
        yield journal
        return
    with Journal(journal, retry_failures=retry_failures) as opened:
        yield opened


def with_usage(result: SynthesisResult, asker: Asker, meter: Meter) -> SynthesisResult:
    """The result with what was asked and what it took."""
    for name in ("asked", "reused", "reasked", "prompt_tokens", "completion_tokens"):
        result.counts[name] = getattr(asker, name)
    limit = meter.limit
    notes = [*result.notes]
    if limit is not None:
        left = sum(not failure.asked for failure in result.failures)
        notes.append(f"The budget ({limit}) is spent: {left} tasks were not asked.")
    return replace(result, cost=meter.spent.cost, limit=limit, notes=notes)


def log_result(result: SynthesisResult) -> None:
    """One line without any text of the documents."""
    dropped = sum(one.count for one in result.dropped.values())
    logger.info(
        "%d pairs from %d documents; %d texts dropped by filters; %d tasks failed",
        len(result.pairs),
        result.counts["documents"],
        dropped,
        len(result.failures),
    )


def _teller(
    total: int, asker: Asker, meter: Meter, progress: Progress | None, watch: Watch | None
) -> Callable[[int], None]:
    watcher = None if watch is None else Watcher(watch, total, asker, meter)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)
        if watcher is not None:
            watcher(done)

    return tell


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
    # Only the kinds that were taken out of the positive cannot be copied from it.
    unbounded = replace(limits, copied_run=10**9, copied_whole=10**9)
    generator = ExtractiveGenerator.fit(passages if corpus is None else corpus, seed=seed)
    drops, seen = DropLog(), SeenQueries(held_out_queries)
    pairs: list[Pair] = []
    outcomes: list[Outcome] = []
    made = 0
    for done, passage in enumerate(passages, start=1):
        before = len(pairs)
        dropped: list[str] = []
        for pair in (generator.pair(passage, kind) for kind in wanted):
            if pair is None:
                continue
            made += 1
            problem = query_problem(pair.query, passage, unbounded) or seen.problem(pair.query)
            if problem is None:
                pairs.append(pair)
            else:
                drops.add(problem, passage.id, pair.query)
                dropped.append(problem)
        outcomes.append(Outcome(passage.id, len(pairs) - before, (), tuple(dict.fromkeys(dropped))))
        if progress is not None:
            progress(done, len(passages))
    result = make_result(pairs, outcomes, made, 0, drops)
    result.counts.update(asked=0, reused=0, reasked=0, prompt_tokens=0, completion_tokens=0)
    result.notes.append("Queries were extracted from the documents (no language model wrote any).")
    if negatives:
        result.notes.append("The extractive generator writes no hard negatives.")
    log_result(result)
    return result
