"""Pairs without documents: the model invents retrieval tasks for a domain, then examples of each.

After BMRetriever (Xu et al. 2024, arXiv 2404.18443, section 3.2): LLM-invented tasks with query-passage pairs
beside the queries written for passages that there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from stm_retriever.errors import ConfigError
from stm_training.data.leakage import normalise
from stm_training.data.records import Pair, Passage
from stm_training.llm.base import LLM, ChoosesModel, JsonSchema, Message, Request, SendsDocuments
from stm_training.llm.budget import Meter
from stm_training.llm.journal import Journal
from stm_training.synthesize.asking import Asker, Failure, TaskFailed
from stm_training.synthesize.estimate import TaskEstimate, task_estimate
from stm_training.synthesize.filters import DropLog, Limits, SeenQueries, negative_problem, query_problem
from stm_training.synthesize.parsing import parse_pair, parse_tasks
from stm_training.synthesize.pool import in_order
from stm_training.synthesize.prompts import Template, load_template
from stm_training.synthesize.queries import Sampling
from stm_training.synthesize.result import Outcome, SynthesisResult, make_result
from stm_training.synthesize.run import log_result, open_journal, with_usage
from stm_training.synthesize.styles import draw

KIND = "task"
LIST_TASK, PAIR_TASK = "tasks/list", "tasks/pair"
_PER_ROUND = 10  # tasks asked for at once; more, and models repeat themselves
_BARREN_ROUNDS = 3  # in a row without a new task: the model knows no more
_LIST_ID = "tasks"

# After the attributes that E5-mistral (Wang et al. 2024, arXiv 2401.00368, appendix) draws for each example.
_LENGTHS = ("2 to 5 words", "5 to 15 words", "one or two sentences", "three or four sentences")
_CLARITY = ("clear", "understandable with some effort", "ambiguous")
_DOCUMENTS = ("about 50 words", "about 120 words", "about 250 words")
_READERS = ("a lay person", "a student", "an expert")

_LIST_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": {"type": "string"}}},
    "required": ["tasks"],
    "additionalProperties": False,
}
_PAIR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("query", "positive", "hard_negative")},
    "required": ["query", "positive", "hard_negative"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Invention:
    """What is to be invented.

    Attributes:
        domain: In words, for the prompts: ``"rheumatology, for patients and nurses"``.
        tasks: How many retrieval tasks.
        pairs_per_task: How many pairs of each.
        prompt: Stored with each pair as its retrieval instruction, with ``{task}`` replaced; ``None``: none.
    """

    domain: str
    tasks: int = 20
    pairs_per_task: int = 10
    prompt: str | None = None

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: For an empty domain, or nothing to invent.
        """
        if not self.domain.strip() or self.tasks < 1 or self.pairs_per_task < 1:
            message = (
                f"domain={self.domain!r}, tasks={self.tasks}, pairs_per_task={self.pairs_per_task}: a "
                "domain in words and at least one task and pair are needed to invent any."
            )
            raise ConfigError(message)


@dataclass
class _Made:
    pair: Pair | None = None
    failures: list[Failure] = field(default_factory=list)
    drops: list[tuple[str, str]] = field(default_factory=list)


def invent_pairs(
    invention: Invention,
    llm: LLM,
    *,
    journal: Journal | Path | str,
    negatives: bool = True,
    concurrency: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    held_out_queries: Iterable[str] = (),
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    templates: Path | str | None = None,
    max_reasks: int = 2,
    retry_failures: bool = False,
    meter: Meter | None = None,
) -> SynthesisResult:
    """Let the model invent retrieval tasks, and pairs of each.

    Resumable as :func:`.run.synthesize` is, through the same journal and under the same budget. The pairs
    have kind ``task``, and ``task:...`` ids that no document of a corpus has.

    Args:
        invention: What is to be invented.
        llm: The model, or a mixture.
        journal: A path or an open journal.
        negatives: Keep the hard negatives that come with the pairs.
        concurrency: Pairs worked on at once; ``None``: the model's ``concurrency``, else 1.
        seed: Of everything that is drawn.
        progress: Called with (pairs done, pairs).
        held_out_queries: Development and test queries; invented ones equal to them are dropped.
        sampling: How the model is asked.
        limits: Of the filters.
        templates: Folder with changed prompt templates.
        max_reasks: How often an unusable answer is put back to the model.
        retry_failures: Ask again what failed in an earlier run with this journal.
        meter: Prices and the budget.

    Returns:
        Pairs, counts, what was dropped, and what failed; its notes name how many tasks there were.

    Raises:
        ConfigError: For unusable settings.
        LLMError: If the server cannot be reached or refuses the key; the journal is kept.
    """
    invention.check()
    meter = meter or Meter()
    sampling = replace(sampling or Sampling(), seed=seed)
    list_template, template = (load_template(name, templates) for name in ("task_list", "task_pair"))
    if isinstance(llm, SendsDocuments):
        llm.announce(0)
    with open_journal(journal, retry_failures) as opened:
        meter.count_earlier(opened.rows())
        reask = load_template("reask", templates)
        asker = Asker(llm, opened, reask=reask, max_reasks=max_reasks, meter=meter)
        tasks, failures = _invent_tasks(asker, invention, list_template, sampling)
        places = [(task, n) for task in tasks for n in range(invention.pairs_per_task)]
        made = in_order(
            lambda place: _write(asker, invention, place, template, sampling, limits or Limits(), negatives),
            places,
            workers=concurrency or int(getattr(llm, "concurrency", 1)),
            done=lambda done: None if progress is None else progress(done, len(places)),
            stop=asker.stop,
        )
    result = _collect(places, made, failures, held_out_queries)
    result = with_usage(result, asker, meter)
    result.notes.append(f"{len(tasks)} retrieval tasks of {invention.tasks} were invented.")
    log_result(result)
    return result


def estimate_invention(
    invention: Invention,
    llm: LLM,
    *,
    sampling: Sampling | None = None,
    templates: Path | str | None = None,
    meter: Meter | None = None,
) -> dict[str, TaskEstimate]:
    """What inventing would take, by task, as if the journal held nothing; nothing is sent."""
    meter = meter or Meter()
    sampling = sampling or Sampling()
    rounds = -(-invention.tasks // _PER_ROUND)
    known = [f"Given a question of the domain, retrieve passages that answer it ({n})." for n in range(9)]
    requests = {
        LIST_TASK: (
            rounds,
            _list_request(invention, load_template("task_list", templates), known, 0, sampling),
            40 * min(_PER_ROUND, invention.tasks),
        ),
        PAIR_TASK: (
            invention.tasks * invention.pairs_per_task,
            _pair_request(invention, (known[0], 0), load_template("task_pair", templates), sampling),
            400,
        ),
    }
    estimates: dict[str, TaskEstimate] = {}
    for task, (count, request, expected) in requests.items():
        total = TaskEstimate()
        for number in range(count):  # another member of a mixture may have other prices
            chosen = llm.choose(pair_id(task, number), task) if isinstance(llm, ChoosesModel) else llm
            total = total.plus(task_estimate(chosen, request, expected, meter))
        estimates[task] = total
    return estimates


def pair_id(task: str, number: int) -> str:
    """The id of an invented pair's positive."""
    return f"task:{hashlib.sha256(task.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}/{number}"


def _invent_tasks(
    asker: Asker, invention: Invention, template: Template, sampling: Sampling
) -> tuple[list[str], list[Failure]]:
    """Ask for tasks, round by round, until there are enough or no new ones come."""
    tasks: dict[str, str] = {}
    barren = number = 0
    while len(tasks) < invention.tasks and barren < _BARREN_ROUNDS:
        request = _list_request(invention, template, list(tasks.values()), number, sampling)
        try:
            found, _ = asker.ask(_LIST_ID, LIST_TASK, request, partial(parse_tasks, limit=2 * _PER_ROUND))
        except TaskFailed as failed:
            if not tasks:
                return [], [failed.failure]
            return list(tasks.values()), [failed.failure]
        before = len(tasks)
        for task in found:
            tasks.setdefault(normalise(task), task)
        barren = 0 if len(tasks) > before else barren + 1
        number += 1
    return list(tasks.values())[: invention.tasks], []


def _list_request(
    invention: Invention, template: Template, known: list[str], number: int, sampling: Sampling
) -> Request:
    prompt = template.render(
        domain=invention.domain,
        count=str(min(_PER_ROUND, invention.tasks)),
        known="".join(f"\n  - {task}" for task in known) or "(none so far)",
    )
    return Request(
        messages=(Message("user", prompt),),
        temperature=sampling.temperature,
        max_tokens=max(sampling.max_tokens, 1024),
        seed=sampling.request_seed(f"{_LIST_ID}/{number}", LIST_TASK),
        json_schema=JsonSchema("tasks_list", _LIST_SCHEMA),
    )


def _pair_request(
    invention: Invention, place: tuple[str, int], template: Template, sampling: Sampling
) -> Request:
    task, number = place
    id_ = pair_id(task, number)

    def drawn(choices: tuple[str, ...], what: str) -> str:
        return draw(choices, sampling.seed, id_, what)

    variation = (
        f"The query has {drawn(_LENGTHS, 'length')}, is {drawn(_CLARITY, 'clarity')}, and comes from "
        f"{drawn(_READERS, 'reader')}; the document has {drawn(_DOCUMENTS, 'document')}."
    )
    prompt = template.render(domain=invention.domain, task=task, variation=variation)
    return Request(
        messages=(Message("user", prompt),),
        temperature=sampling.temperature,
        max_tokens=max(sampling.max_tokens, 1024),
        seed=sampling.request_seed(id_, PAIR_TASK),
        json_schema=JsonSchema("tasks_pair", _PAIR_SCHEMA),
    )


def _write(
    asker: Asker,
    invention: Invention,
    place: tuple[str, int],
    template: Template,
    sampling: Sampling,
    limits: Limits,
    negatives: bool,
) -> _Made:
    """One pair, filtered on its own."""
    task, number = place
    id_ = pair_id(task, number)
    made = _Made()
    request = _pair_request(invention, place, template, sampling)
    try:
        (query, positive, negative), model = asker.ask(id_, PAIR_TASK, request, parse_pair)
    except TaskFailed as failed:
        made.failures.append(failed.failure)
        return made
    passage = Passage(id_, positive)
    problem = query_problem(query, passage, limits) or _positive_problem(positive, limits)
    if problem is not None:
        made.drops.append((problem, query))
        return made
    if negative is not None and negatives:
        problem = negative_problem(negative, passage, limits)
        if problem is not None:
            made.drops.append((problem, negative))
            negative = None
    prompt = None if invention.prompt is None else invention.prompt.replace("{task}", task)
    made.pair = Pair(
        query=query,
        positive=positive,
        negatives=(negative,) if negative is not None and negatives else (),
        query_id=f"{id_}/query",
        positive_id=id_,
        source=model,
        kind=KIND,
        prompt=prompt,
    )
    return made


def _positive_problem(positive: str, limits: Limits) -> str | None:
    """A positive is held to what a negative is: a text of a document's length that refuses nothing."""
    problem = negative_problem(positive, Passage("", ""), limits)
    return None if problem is None else problem.replace("negative_", "positive_")


def _collect(
    places: list[tuple[str, int]],
    made: list[_Made],
    list_failures: list[Failure],
    held_out_queries: Iterable[str],
) -> SynthesisResult:
    drops, seen = DropLog(), SeenQueries(held_out_queries)
    pairs: list[Pair] = []
    outcomes = [Outcome(_LIST_ID, 0, tuple(list_failures))] if list_failures else []
    for (task, number), one in zip(places, made, strict=True):
        id_ = pair_id(task, number)
        dropped = [*one.drops]
        if one.pair is not None:
            problem = seen.problem(one.pair.query)
            if problem is None:
                pairs.append(one.pair)
            else:
                dropped.append((problem, one.pair.query))
        for name, text in dropped:
            drops.add(name, id_, text)
        kept = int(one.pair is not None and bool(pairs) and pairs[-1] is one.pair)
        outcomes.append(Outcome(id_, kept, tuple(one.failures), tuple(name for name, _ in dropped)))
    parsed = sum(not one.failures for one in made)
    return make_result(pairs, outcomes, parsed, sum(len(pair.negatives) for pair in pairs), drops)
