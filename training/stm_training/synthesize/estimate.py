"""What a synthesis would take, told before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stm_training.data.records import Passage
from stm_training.llm.base import LLM, ChoosesModel, Completion, Request
from stm_training.llm.budget import Meter, Spent, estimated_tokens, prompt_tokens
from stm_training.llm.journal import Journal, JournalRow
from stm_training.synthesize.asking import Asker, Failure, TaskFailed
from stm_training.synthesize.filters import Limits
from stm_training.synthesize.hard_negatives import DEFAULT_INSTRUCTION, negative_task
from stm_training.synthesize.prompts import load_template
from stm_training.synthesize.queries import Sampling
from stm_training.synthesize.run import load_templates
from stm_training.synthesize.styles import PLAIN, Style
from stm_training.synthesize.writer import Writer, Written

# Tokens of one query of each kind, with its part of the JSON; measured on English ones, rounded up.
_ANSWER_TOKENS: Mapping[str, int] = {
    "question": 35,
    "claim": 40,
    "keywords": 20,
    "title": 30,
    "long": 140,
    "few_shot": 40,
}
_A_QUERY = "What is known about this subject, and for whom does it hold?"  # stands in for one not yet written


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """What one kind of task would take.

    Attributes:
        requests: Completions to ask for; re-asks of unusable answers come on top.
        prompt_tokens: Of the very prompts that would be sent.
        completion_tokens: As such answers usually are.
        cost: Of both.
        most: Cost if every answer were as long as ``max_tokens`` allows.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    most: float = 0.0

    def plus(self, other: TaskEstimate) -> TaskEstimate:
        """Both together."""
        return TaskEstimate(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            self.most + other.most,
        )


@dataclass(frozen=True)
class Estimate:
    """What a synthesis would take.

    Attributes:
        documents: How many there are.
        by_task: By task, for instance ``query/question``.
        reused: Completions that the journal holds already.
        spent: What the journal's rows took.
    """

    documents: int
    by_task: Mapping[str, TaskEstimate]
    reused: int = 0
    spent: Spent = field(default_factory=Spent)

    @property
    def total(self) -> TaskEstimate:
        """All tasks together."""
        total = TaskEstimate()
        for one in self.by_task.values():
            total = total.plus(one)
        return total

    def plus(self, task: str, one: TaskEstimate) -> Estimate:
        """With some more requests of a task."""
        by_task = {**self.by_task, task: self.by_task.get(task, TaskEstimate()).plus(one)}
        return replace(self, by_task=by_task)

    def lines(self, hosts: Sequence[str] = ()) -> list[str]:
        """The estimate for a person to read.

        Args:
            hosts: Where the texts would go.
        """
        where = f" go to {', '.join(hosts)}" if hosts else ""
        lines = [f"Estimate: {self.documents} documents{where}; {self.reused} completions are there already."]
        for task, one in [*sorted(self.by_task.items()), ("together", self.total)]:
            cost = f", cost {one.cost:.4g} (at most {one.most:.4g})" if one.most else ""
            lines.append(
                f"  {task:<24} {one.requests:>8} requests, about {one.prompt_tokens} prompt and "
                f"{one.completion_tokens} completion tokens{cost}"
            )
        return lines

    def figures(self) -> dict[str, Any]:
        """For a report in JSON."""
        rows = {**self.by_task, "together": self.total}
        names = ("requests", "prompt_tokens", "completion_tokens", "cost", "most")
        return {
            "documents": self.documents,
            "reused": self.reused,
            "tasks": {task: {name: getattr(one, name) for name in names} for task, one in rows.items()},
        }


def estimate(
    passages: Sequence[Passage],
    llm: LLM,
    *,
    journal: Journal | None = None,
    kinds: Sequence[str] | None = None,
    negatives: bool = True,
    seed: int = 0,
    sampling: Sampling | None = None,
    style: Style = PLAIN,
    instruction: str = DEFAULT_INSTRUCTION,
    templates: Path | str | None = None,
    max_reasks: int = 2,
    meter: Meter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Measure the prompts that :func:`.run.synthesize` would send with the same settings; nothing is sent.

    What the journal answers is taken from it, along the very path that a resumed run takes. Prompt tokens
    are counted where the model's tokenizer is at hand, and else estimated, rather too high.

    Args:
        passages: What queries would be written for.
        llm: The model, or a mixture.
        journal: Completions that there are; ``None``: none.
        kinds: As for ``synthesize``; likewise what follows.
        negatives: Whether hard negatives would be asked for.
        seed: Of everything that is drawn.
        sampling: How the model would be asked.
        style: Personas, difficulties and sample queries.
        instruction: The retrieval task.
        templates: Folder with changed prompt templates.
        max_reasks: How often an unusable answer would be put back.
        meter: Knows the prices.
        progress: Called with (passages measured, passages).

    Returns:
        The estimate, by task.

    Raises:
        ConfigError: For unusable settings.
    """
    sampling = replace(sampling or Sampling(), seed=seed)
    meter = meter or Meter()
    chosen = load_templates(kinds, style, templates)
    surveyor = Surveyor(
        llm, journal, reask=load_template("reask", templates), max_reasks=max_reasks, meter=meter
    )
    writer = Writer(
        asker=surveyor,
        templates=chosen,
        negative_template=load_template("hard_negative", templates) if negatives else None,
        sampling=sampling,
        style=style,
        limits=Limits(),
        instruction=instruction,
    )
    for done, passage in enumerate(passages, start=1):
        surveyor.expect(passage, sampling)
        _add_unforeseen_negative(surveyor, writer, passage, writer.write(passage))
        if progress is not None:
            progress(done, len(passages))
    if journal is not None:
        meter.count_earlier(journal.rows())
    return Estimate(len(passages), surveyor.by_task, surveyor.reused, meter.spent)


class Surveyor(Asker):
    """An asker that notes what it would ask for instead of asking.

    Attributes:
        by_task: What was noted; negatives of every kind of query together.
    """

    def __init__(self, llm: LLM, journal: Journal | None, **options: Any) -> None:
        super().__init__(llm, journal, **options)
        self.by_task: dict[str, TaskEstimate] = {}
        self._negative_tokens = self._per_kind = 0

    def expect(self, passage: Passage, sampling: Sampling) -> None:
        """Say which passage comes next: its hard negative will be about as long as it is."""
        self._negative_tokens = estimated_tokens(passage.content)
        self._per_kind = sampling.per_kind

    def note(self, llm: LLM, request: Request, document_id: str, task: str) -> None:
        """Note one request."""
        if isinstance(llm, ChoosesModel):
            llm = llm.choose(document_id, task)
        family, _, kind = task.partition("/")
        tokens = self._negative_tokens
        if family == "query":
            tokens = _ANSWER_TOKENS.get(kind, 40) * self._per_kind
        one = task_estimate(llm, request, tokens, self._meter)
        name = family if family == "hard_negative" else task
        self.by_task[name] = self.by_task.get(name, TaskEstimate()).plus(one)

    def _ask_anew(self, llm: LLM, request: Request, row: JournalRow, *, reask: bool) -> Completion:
        self.note(llm, request, row.document_id, row.task)
        raise TaskFailed(Failure(row.document_id, row.task, "not asked: an estimate", asked=False))


def task_estimate(llm: LLM, request: Request, expected: int, meter: Meter) -> TaskEstimate:
    """What one request would take, if its answer has so many tokens."""
    asked, written = prompt_tokens(llm, request), min(expected, request.max_tokens)
    price = meter.price(llm.name)
    return TaskEstimate(1, asked, written, price.cost(asked, written), price.cost(asked, request.max_tokens))


def _add_unforeseen_negative(surveyor: Surveyor, writer: Writer, passage: Passage, written: Written) -> None:
    """A passage whose queries are still to be written will ask for a negative too."""
    if written.queries or all(failure.asked for failure in written.failures):
        return
    kind = next(iter(writer.templates))
    request = writer.negative_request(passage, kind, _A_QUERY)
    if request is not None:
        surveyor.note(surveyor.llm, request, passage.id, negative_task(kind))
