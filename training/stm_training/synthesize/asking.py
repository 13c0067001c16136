"""One task put to a model: journal first, then the budget, then the model, then bounded re-asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from stm_retriever.errors import LLMError
from stm_training.llm.base import (
    LLM,
    ChoosesModel,
    Completion,
    LLMAccessError,
    LLMRequestError,
    Message,
    Request,
)
from stm_training.llm.budget import BudgetSpent, Meter, Spent
from stm_training.llm.journal import Journal, JournalRow, request_key
from stm_training.synthesize.parsing import UnusableAnswer
from stm_training.synthesize.prompts import Template

Answer = TypeVar("Answer")

_EMPTY = "(empty)"


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that brought nothing.

    Attributes:
        document_id: The passage.
        task: For instance ``query/question``.
        reason: Why, without any of the document's text.
        asked: It was put to the model; false where the budget, or a stop, came first.
    """

    document_id: str
    task: str
    reason: str
    asked: bool = True

    def __str__(self) -> str:
        return f"{self.document_id} {self.task}: {self.reason}"


class TaskFailed(Exception):
    """Carries a :class:`Failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Asker:
    """Asks a model, from several threads, and writes every answer down before it is used.

    An unusable answer is put back to the model with the reason, at most ``max_reasks`` times; each of these
    is a request of its own in the journal, so that a resumed run walks the same path without asking.

    Args:
        llm: The model, or several that choose by task.
        journal: Where completions are kept; ``None``: nothing is asked (see :mod:`.estimate`).
        reask: The ``reask`` template.
        max_reasks: Bound on re-asks of one task.
        meter: Counts what is spent, and stops at its budget; the tasks after that fail as not asked.
        unreachable_limit: After so many requests in a row that did not reach the server, none more is made.

    Attributes:
        llm: The model.
        asked: Completions asked for in this run.
        reused: Completions taken from the journal.
        reasked: Those of ``asked`` that were re-asks.
        prompt_tokens: Of the completions asked for in this run, as the server counts, else estimated.
        completion_tokens: Likewise.
    """

    def __init__(
        self,
        llm: LLM,
        journal: Journal | None,
        *,
        reask: Template,
        max_reasks: int = 2,
        meter: Meter | None = None,
        unreachable_limit: int = 8,
    ) -> None:
        self.llm = llm
        self._chooser = llm if isinstance(llm, ChoosesModel) else None
        self._journal = journal
        self._reask = reask
        self._max_reasks = max_reasks
        self._meter = meter or Meter()
        self._unreachable_limit = unreachable_limit
        self._unreachable = 0
        self._fatal: LLMError | None = None
        self._lock = threading.Lock()
        self.asked = self.reused = self.reasked = 0
        self.prompt_tokens = self.completion_tokens = 0

    def stop(self) -> None:
        """Ask for nothing more."""
        with self._lock:
            self._fatal = self._fatal or LLMError("The synthesis was stopped; all answers are kept.")

    def ask(
        self, document_id: str, task: str, request: Request, parse: Callable[[str], Answer]
    ) -> tuple[Answer, str]:
        """Put one task to the model.

        Args:
            document_id: Part of the journal key.
            task: For messages and the journal's reader.
            request: The first request.
            parse: Takes the answer apart, or raises :class:`UnusableAnswer`.

        Returns:
            What ``parse`` made of it, and the name of the model that wrote it.

        Raises:
            TaskFailed: If the task brought nothing.
            LLMError: If no task can succeed.
        """
        reason = ""
        for attempt in range(self._max_reasks + 1):
            completion = self._completion(document_id, task, request, reask=attempt > 0)
            try:
                return parse(completion.text), completion.model
            except UnusableAnswer as unusable:
                reason = unusable.reason
                if completion.finish_reason == "length":
                    reason += " (it reached the limit of max_tokens)"
                request = self._again(request, completion.text, unusable.reason)
        tries = self._max_reasks + 1
        raise TaskFailed(Failure(document_id, task, f"no usable answer in {tries} tries: {reason}"))

    def _completion(self, document_id: str, task: str, request: Request, *, reask: bool) -> Completion:
        llm = self.llm if self._chooser is None else self._chooser.choose(document_id, task)
        key = request_key(llm.name, request, document_id)
        row = None if self._journal is None else self._journal.get(key)
        if row is not None and row.completion is None:
            raise TaskFailed(Failure(document_id, task, row.reason))
        if row is not None and row.completion is not None:
            with self._lock:
                self.reused += 1
            return row.completion
        return self._ask_anew(llm, request, JournalRow(key, document_id, task, None), reask=reask)

    def _ask_anew(self, llm: LLM, request: Request, row: JournalRow, *, reask: bool) -> Completion:
        """Ask the model, and write its answer down."""
        held = self._hold(llm, request, row)
        try:
            completion = llm.complete(request)
        except LLMRequestError as error:
            if error.asked:
                self._meter.settle_failure(held)
            else:
                self._meter.release(held)
            self._append(replace(row, reason=error.reason, asked=error.asked, generator=llm.name))
            self._count_unreachable(error)
            raise TaskFailed(Failure(row.document_id, row.task, error.reason)) from error
        except BaseException as error:
            self._meter.release(held)
            if isinstance(error, LLMAccessError):
                self._fatal = error  # the other threads need not find out for themselves
            raise
        completion = self._meter.settle(held, llm, request, completion)
        self._append(replace(row, completion=completion, generator=llm.name))
        with self._lock:
            self._unreachable = 0
            self.asked += 1
            self.reasked += reask
            self.prompt_tokens += completion.prompt_tokens
            self.completion_tokens += completion.completion_tokens
        return completion

    def _hold(self, llm: LLM, request: Request, row: JournalRow) -> Spent:
        try:
            held = self._meter.hold(llm, request)
        except BudgetSpent as spent:
            reason = f"not asked: the budget ({spent.limit}) is spent"
            raise TaskFailed(Failure(row.document_id, row.task, reason, asked=False)) from spent
        if self._fatal is not None:
            self._meter.release(held)
            raise self._fatal
        return held

    def _append(self, row: JournalRow) -> None:
        if self._journal is not None:
            self._journal.append(row)

    def _count_unreachable(self, error: LLMRequestError) -> None:
        with self._lock:
            self._unreachable = 0 if error.asked else self._unreachable + 1
            stop = self._unreachable >= self._unreachable_limit
        if stop:
            message = (
                f"{self._unreachable_limit} requests in a row did not reach the server ({error.reason}). All "
                "answers so far are kept in the journal: start the server and run again."
            )
            self._fatal = LLMError(message)
            raise self._fatal from error

    def _again(self, request: Request, answer: str, reason: str) -> Request:
        turns = (
            Message("assistant", answer.strip() or _EMPTY),
            Message("user", self._reask.render(reason=reason)),
        )
        return replace(request, messages=request.messages + turns)
