"""One reflection: a language model sees where an instruction fails and writes another, which is linted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stm_retriever.errors import LLMError
from stm_training.llm.base import LLM, Completion, Message, Request
from stm_training.llm.journal import Journal
from stm_training.prompting.candidates import make_prompt
from stm_training.prompting.lint import PromptLinter
from stm_training.prompting.template_text import render
from stm_training.synthesize.asking import Asker, TaskFailed
from stm_training.synthesize.parsing import UnusableAnswer, parse_document
from stm_training.synthesize.prompts import load_template

Reflect = Callable[[str], str]
"""A stand-in for a language model: the request's text in, the answer out."""

_LIMIT = 200  # characters asked for; the linter's own limit is for the whole prompt
_LABEL = re.compile(r"\A(?:new |better |improved )?instruction\s*:\s*", re.IGNORECASE)


class CallableLLM:
    """A plain function as an LLM; of a conversation it gets the whole text.

    Args:
        function: The request's text in, the answer out.
        name: Part of every journal key.
    """

    def __init__(self, function: Reflect, name: str = "callable") -> None:
        self._function = function
        self._name = name

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    def complete(self, request: Request) -> Completion:
        """Answer a request."""
        text = "\n\n".join(message.content for message in request.messages)
        return Completion(text=self._function(text), model=self._name)


@dataclass
class Reflector:
    """Asks for new instructions, and never raises: what went wrong is kept for afterwards.

    GEPA swallows exceptions of a proposer, calls it again, and goes on until its budget is spent.

    Attributes:
        llm: The model.
        journal: Where completions are kept; a resumed search asks nothing twice.
        linter: Refuses what must not be written; the model is told why, and asked again.
        template: How an instruction becomes a prompt.
        seed: Passed on with each request.
        temperature: Of the sampling.
        most: Most reflections.
        done: Reflections so far.
        failures: Why reflections brought nothing.
        error: What ended the search.
    """

    llm: LLM
    journal: Journal
    linter: PromptLinter
    template: str
    seed: int = 0
    temperature: float = 0.7
    most: int = 40
    done: int = 0
    failures: list[str] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._asker = Asker(self.llm, self.journal, reask=load_template("reask"))

    @property
    def stopped(self) -> bool:
        """No further reflection will be made."""
        return self.error is not None or self.done >= self.most

    def propose(self, instruction: str, examples: Sequence[str]) -> str | None:
        """Ask for a better instruction.

        Args:
            instruction: The present one.
            examples: What it brings for some queries, one text per query.

        Returns:
            The new instruction, or ``None`` if there is none this time.
        """
        if self.stopped:
            return None
        self.done += 1
        text = render(
            "reflect", instruction=instruction.strip(), examples="\n\n".join(examples), limit=str(_LIMIT)
        )
        request = Request(
            (Message("user", text),),
            temperature=self.temperature,
            max_tokens=512,
            seed=self.seed + self.done,
        )
        try:
            # The number is part of the journal key: the same question twice is two answers.
            answer, _ = self._asker.ask(f"reflection-{self.done}", "prompt/reflect", request, self._parse)
        except TaskFailed as failed:
            self.failures.append(failed.failure.reason)
            return None
        except Exception as error:  # kept, and raised again once GEPA has stopped
            self.error = error
            return None
        return answer

    def raise_error(self) -> None:
        """Raise what ended the search.

        Raises:
            LLMError: If the model could not be used, or a caller's own function failed.
        """
        if isinstance(self.error, LLMError):
            raise self.error
        if self.error is not None:
            message = (
                f"The reflection by {self.llm.name!r} failed with {type(self.error).__name__}: {self.error}. "
                "No prompt was chosen; mend it and run again, answers so far are kept."
            )
            raise LLMError(message) from self.error

    def _parse(self, answer: str) -> str:
        text = " ".join(_LABEL.sub("", parse_document(answer)).split())
        if not text:
            raise UnusableAnswer("it holds no instruction")
        findings = self.linter.check(make_prompt(text, self.template))
        if findings:
            raise UnusableAnswer("; ".join(str(finding) for finding in findings))
        return text
