"""What requests cost, and a limit that is never passed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from stm_retriever.errors import LLMError
from stm_training.llm.base import LLM, Completion, CountsTokens, Request
from stm_training.llm.journal import JournalRow

# UTF-8 bytes per token: English has over 4, Chinese about 3 to 4; below both, so that estimates are high.
_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 8  # a chat template's marks
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """What a model costs.

    Attributes:
        input: Per million prompt tokens, in whatever currency.
        output: Per million completion tokens.
    """

    input: float = 0.0
    output: float = 0.0

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of so many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / _MILLION


@dataclass(frozen=True, slots=True)
class Budget:
    """Hard limits on what one journal's completions may take, over all runs that write it; ``None``: none.

    Attributes:
        max_requests: Completions (a retry after an error is not counted again).
        max_tokens: Prompt and completion tokens together.
        max_cost: In the currency of the prices.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None

    def passed_by(self, spent: Spent) -> str | None:
        """Which limit an expense passes, in words; ``None`` if it stays inside."""
        checks = (
            ("max_requests", self.max_requests, spent.requests),
            ("max_tokens", self.max_tokens, spent.prompt_tokens + spent.completion_tokens),
            ("max_cost", self.max_cost, spent.cost),
        )
        for name, limit, value in checks:
            if limit is not None and value > limit + 1e-9:
                return f"{name} of {limit:g}"
        return None


@dataclass(frozen=True, slots=True)
class Spent:
    """An expense, done or foreseen."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )

    def minus(self, other: Spent) -> Spent:
        """This without the other."""
        return self.plus(Spent(-other.requests, -other.prompt_tokens, -other.completion_tokens, -other.cost))


class BudgetSpent(LLMError):
    """The next request could pass a limit, so it is not made.

    Attributes:
        limit: Which one, in words.
    """

    def __init__(self, limit: str) -> None:
        super().__init__(f"The budget ({limit}) is spent; raise it and run again to go on.")
        self.limit = limit


def estimated_tokens(text: str) -> int:
    """A text's tokens where no tokenizer is at hand; rather too many than too few."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def prompt_tokens(llm: LLM, request: Request) -> int:
    """A prompt's tokens: counted where the model's tokenizer is at hand, else estimated."""
    if isinstance(llm, CountsTokens):
        return llm.count_tokens(request)
    return sum(estimated_tokens(m.content) + _TOKENS_PER_MESSAGE for m in request.messages)


class Meter:
    """Counts what is spent, from several threads, and refuses what could pass the budget.

    A request is let through only if its worst case (the prompt, and an answer of ``max_tokens``) fits beside
    all that is under way; one that does not fit waits until what is under way is known. So the budget holds
    as far as prompts are estimated well; they are estimated high, and higher where a server counted more.

    Args:
        budget: The limits.
        prices: By the model's name; a model without costs nothing.
    """

    def __init__(self, budget: Budget | None = None, prices: Mapping[str, Prices] | None = None) -> None:
        self.budget = budget or Budget()
        self.prices = dict(prices or {})
        self._spent = Spent()
        self._held = Spent()
        self._low: dict[str, float] = {}  # by how much a model's prompts were estimated too low
        self._limit: str | None = None
        self._room = threading.Condition()

    @property
    def spent(self) -> Spent:
        """All that was spent so far, earlier runs' rows included."""
        with self._room:
            return self._spent

    @property
    def limit(self) -> str | None:
        """The limit that stopped the run, in words; ``None`` while there is room."""
        with self._room:
            return self._limit

    def price(self, generator: str) -> Prices:
        """The prices of a model."""
        return self.prices.get(generator, Prices())

    def count_earlier(self, rows: Iterable[JournalRow]) -> None:
        """Count what a journal's rows took, instead of whatever was counted before."""
        total = Spent()
        for row in rows:
            done = row.completion
            if done is None:
                total = total.plus(Spent(requests=int(row.asked)))
            else:
                total = total.plus(self._spend(row.generator, done.prompt_tokens, done.completion_tokens))
        with self._room:
            self._spent = total

    def hold(self, llm: LLM, request: Request) -> Spent:
        """Set a request's worst case aside; wait for others to end where that could make room.

        Raises:
            BudgetSpent: If it does not fit, now or earlier.
        """
        tokens = prompt_tokens(llm, request)
        with self._room:
            while True:
                if self._limit is not None:
                    raise BudgetSpent(self._limit)
                worst = self._spend(llm.name, int(tokens * self._low.get(llm.name, 1.0)), request.max_tokens)
                passed = self.budget.passed_by(self._spent.plus(self._held).plus(worst))
                if passed is None:
                    self._held = self._held.plus(worst)
                    return worst
                if self._held.requests == 0:
                    self._limit = passed
                    self._room.notify_all()
                    raise BudgetSpent(passed)
                self._room.wait()

    def settle(self, held: Spent, llm: LLM, request: Request, completion: Completion) -> Completion:
        """Book what an answer took instead of its worst case.

        Args:
            held: What :meth:`hold` returned.
            llm: Who was asked.
            request: What was asked.
            completion: The answer.

        Returns:
            The completion, its token counts estimated where the server gave none.
        """
        tokens = prompt_tokens(llm, request)
        completion = replace(
            completion,
            prompt_tokens=completion.prompt_tokens or tokens,
            completion_tokens=completion.completion_tokens or estimated_tokens(completion.text),
        )
        asked = completion.prompt_tokens
        with self._room:
            self._spent = self._spent.plus(self._spend(llm.name, asked, completion.completion_tokens))
            self._low[llm.name] = max(self._low.get(llm.name, 1.0), asked / max(1, tokens))
        self.release(held)
        return completion

    def settle_failure(self, held: Spent) -> None:
        """Book a request that the server saw and that brought nothing: it counts, without tokens."""
        with self._room:
            self._spent = self._spent.plus(Spent(requests=1))
        self.release(held)

    def release(self, held: Spent) -> None:
        """Give back what was set aside for a request that was not made."""
        with self._room:
            self._held = self._held.minus(held)
            self._room.notify_all()

    def _spend(self, generator: str, asked: int, written: int) -> Spent:
        return Spent(1, asked, written, self.price(generator).cost(asked, written))
