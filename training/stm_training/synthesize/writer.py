"""All tasks of one passage: its queries of every kind, then its hard negative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

from stm_training.data.records import Passage
from stm_training.llm.base import Request
from stm_training.synthesize.asking import Failure, TaskFailed
from stm_training.synthesize.filters import Limits, negative_problem, query_problem
from stm_training.synthesize.hard_negatives import negative_request, negative_task
from stm_training.synthesize.parsing import parse_document, parse_queries
from stm_training.synthesize.prompts import Template
from stm_training.synthesize.queries import Sampling, query_request, query_task
from stm_training.synthesize.styles import Style

Answer = TypeVar("Answer")

LONG = "long"
_LONG_WORDS = (12, 250)  # of a request that explains a situation; those of a search box are no measure


class Asks(Protocol):
    """Puts one task to a model; see :class:`.asking.Asker`."""

    def ask(
        self, document_id: str, task: str, request: Request, parse: Callable[[str], Answer]
    ) -> tuple[Answer, str]:
        """The parsed answer, and who wrote it."""


@dataclass
class Written:
    """What a model wrote for one passage, filtered on its own."""

    queries: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, text, written by)
    parsed: int = 0
    negative: str | None = None
    negative_kind: str = ""
    drops: list[tuple[str, str]] = field(default_factory=list)  # (filter, text)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Writer:
    """Writes queries and a hard negative for passages.

    Attributes:
        asker: Puts tasks to the model.
        templates: By kind of query, in the order in which they are asked for.
        negative_template: ``None``: no hard negatives.
        sampling: How the model is asked.
        style: How the queries should sound.
        limits: Of the filters.
        instruction: The retrieval task, for the prompt that asks for hard negatives.
    """

    asker: Asks
    templates: Mapping[str, Template]
    negative_template: Template | None
    sampling: Sampling
    style: Style
    limits: Limits
    instruction: str

    def write(self, passage: Passage) -> Written:
        """All tasks of one passage, one after the other."""
        done = Written()
        for kind in self.templates:
            self._write_queries(passage, kind, done)
        if self.negative_template is not None and done.queries:
            self._write_negative(passage, done)
        return done

    def negative_request(self, passage: Passage, kind: str, query: str) -> Request | None:
        """The request for a passage's hard negative; ``None`` where none are wanted."""
        template = self.negative_template
        if template is None:
            return None
        return negative_request(passage, query, kind, template, self.sampling, instruction=self.instruction)

    def _write_queries(self, passage: Passage, kind: str, done: Written) -> None:
        request = query_request(passage, kind, self.templates[kind], self.sampling, self.style)
        per_kind = self.sampling.per_kind
        parse = partial(parse_queries, limit=per_kind, whole=kind == LONG and per_kind == 1)
        try:
            queries, model = self.asker.ask(passage.id, query_task(kind), request, parse)
        except TaskFailed as failed:
            done.failures.append(failed.failure)
            return
        limits = limits_for(kind, self.limits)
        for query in queries:
            done.parsed += 1
            problem = query_problem(query, passage, limits)
            if problem is None:
                done.queries.append((kind, query, model))
            else:
                done.drops.append((problem, query))

    def _write_negative(self, passage: Passage, done: Written) -> None:
        kind, query, _ = done.queries[0]
        request = self.negative_request(passage, kind, query)
        if request is None:
            return
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


def limits_for(kind: str, limits: Limits) -> Limits:
    """A kind's own limits: long requests may be long, and must not be short."""
    if kind != LONG:
        return limits
    shortest, longest = _LONG_WORDS
    return replace(limits, shortest=max(limits.shortest, shortest), longest=max(limits.longest, longest))
