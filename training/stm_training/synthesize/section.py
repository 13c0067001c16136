"""A recipe's ``synthesize`` section, carried out: estimate, queries and negatives, invented pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from stm_training.data.records import Passage
from stm_training.llm.base import LLM
from stm_training.llm.build import OpenLLM, open_llm
from stm_training.llm.journal import Journal
from stm_training.synthesize.asking import Failure
from stm_training.synthesize.estimate import Estimate, estimate
from stm_training.synthesize.result import Outcome, SynthesisResult, joined
from stm_training.synthesize.run import Progress, Watch, open_journal, synthesize
from stm_training.synthesize.settings import SynthesizeSection
from stm_training.synthesize.tasks import estimate_invention, invent_pairs

Tell = Callable[[str], None]


def synthesize_section(
    section: SynthesizeSection,
    passages: Sequence[Passage],
    *,
    journal: Path | str | None = None,
    seed: int = 0,
    held_out_queries: Iterable[str] = (),
    progress: Progress | None = None,
    watch: Watch | None = None,
    tell: Tell | None = None,
    retry_failures: bool = False,
) -> SynthesisResult:
    """Do what a ``synthesize`` section says.

    Args:
        section: The section; its ``max_documents`` is the caller's to apply.
        passages: What to write queries for; may be empty if the section invents tasks.
        journal: File of completions; needed with a model.
        seed: Of everything that is drawn.
        held_out_queries: Development and test queries; synthetic ones equal to them are dropped.
        progress: Called with (passages done, passages).
        watch: Called likewise, with rate, tokens, cost and time left.
        tell: Receives the lines of the estimate, before anything is asked; ``None``: none is made.
        retry_failures: Ask again what failed in an earlier run with this journal.

    Returns:
        Pairs, counts, and what became of every passage; pairs of invented tasks have kind ``task``.

    Raises:
        StmError: As :func:`.run.synthesize` and :func:`stm_training.llm.build.open_llm` do.
    """
    held_out = tuple(held_out_queries)
    options = section.options(seed=seed)
    with ExitStack() as stack:
        opened = stack.enter_context(open_llm(section.llm, passages, seed=seed))
        if opened.llm is None:
            return synthesize(
                passages,
                kinds=section.kinds,
                negatives=section.hard_negatives,
                seed=seed,
                progress=progress,
                held_out_queries=held_out,
            )
        rows = stack.enter_context(open_journal(journal, retry_failures))
        if tell is not None:
            for line in _estimated(section, opened, opened.llm, rows, seed).lines(opened.hosts):
                tell(line)
        result = synthesize(
            opened.passages,
            opened.llm,
            journal=rows,
            meter=opened.meter,
            progress=progress,
            watch=watch,
            held_out_queries=held_out,
            **options,
        )
        if section.tasks is not None:
            invented = invent_pairs(
                section.tasks.invention(),
                opened.llm,
                journal=rows,
                negatives=section.hard_negatives,
                seed=seed,
                progress=progress,
                held_out_queries=held_out,
                sampling=section.sampling(),
                templates=section.templates,
                max_reasks=section.max_reasks,
                meter=opened.meter,
            )
            result = joined(result, invented)
    return _with_unrecorded(result, passages, opened.passages)


def estimate_section(
    section: SynthesizeSection, passages: Sequence[Passage], *, journal: Path | None = None, seed: int = 0
) -> tuple[Estimate, tuple[str, ...]]:
    """What a section would take and where its texts would go; nothing is sent, no journal is made.

    Without a model nothing is taken: the estimate has no task.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_llm(section.llm, passages, seed=seed, sending=False))
        if opened.llm is None:
            return Estimate(len(passages), {}), ()
        rows = stack.enter_context(Journal(journal)) if journal is not None and journal.is_file() else None
        return _estimated(section, opened, opened.llm, rows, seed), opened.hosts


def _estimated(
    section: SynthesizeSection, opened: OpenLLM, llm: LLM, journal: Journal | None, seed: int
) -> Estimate:
    found = estimate(opened.passages, llm, journal=journal, meter=opened.meter, **section.options(seed=seed))
    if section.tasks is not None:
        invented = estimate_invention(
            section.tasks.invention(),
            llm,
            sampling=section.sampling(),
            templates=section.templates,
            meter=opened.meter,
        )
        for task, one in invented.items():
            found = found.plus(task, one)
    return found


def _with_unrecorded(
    result: SynthesisResult, passages: Sequence[Passage], asked: Sequence[Passage]
) -> SynthesisResult:
    """List the passages that recorded completions know nothing of, so that every one is accounted for."""
    known = {passage.id for passage in asked}
    reason = "no completion was recorded for it"
    missing = [
        Outcome(passage.id, 0, (Failure(passage.id, "replay", reason, asked=False),))
        for passage in passages
        if passage.id not in known
    ]
    if not missing:
        return result
    notes = [*result.notes, f"{len(missing)} documents have no recorded completion."]
    return replace(result, outcomes=[*result.outcomes, *missing], notes=notes)
