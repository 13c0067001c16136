"""Several generators, mixed with weights: queries of several models make a better teacher than one's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from stm_retriever.errors import ConfigError
from stm_training.llm.base import LLM, Completion, Request, SendsDocuments

_SPAN = 2.0**64


class Mixture:
    """Chooses one of several LLMs for each task, by a hash of document, task and seed.

    The choice is weighted rendezvous hashing: it depends on nothing but the task and the members' names, so
    a resumed run asks the same model; and a member that is added or reweighted takes tasks over without any
    being shuffled among the others.

    Args:
        members: Each LLM with its weight; the shares are weights over their sum.
        seed: Another seed mixes otherwise.

    Raises:
        ConfigError: For no member, a weight that is not positive, or two members of one name.
    """

    def __init__(self, members: Sequence[tuple[LLM, float]], *, seed: int = 0) -> None:
        names = [llm.name for llm, _ in members]
        if not members or len(set(names)) < len(names):
            message = (
                f"The members of a mixture are told apart by name: give one or more, each once, not {names}."
            )
            raise ConfigError(message)
        if not all(weight > 0 and math.isfinite(weight) for _, weight in members):
            message = (
                f"The weights of a mixture are {[weight for _, weight in members]}; each must be above 0."
            )
            raise ConfigError(message)
        self._members = tuple(members)
        self._seed = seed

    @property
    def name(self) -> str:
        """The members' names."""
        return " + ".join(llm.name for llm, _ in self._members)

    @property
    def members(self) -> tuple[LLM, ...]:
        """The LLMs, in the order given."""
        return tuple(llm for llm, _ in self._members)

    @property
    def concurrency(self) -> int:
        """What all members take together."""
        return sum(int(getattr(llm, "concurrency", 1)) for llm in self.members)

    def announce(self, document_count: int) -> None:
        """Let every member that sends documents say so; each may get any of them."""
        for llm in self.members:
            if isinstance(llm, SendsDocuments):
                llm.announce(document_count)

    def choose(self, document_id: str, task: str) -> LLM:
        """The member for a task."""
        scored = [(self._score(llm, weight, document_id, task), llm) for llm, weight in self._members]
        return max(scored, key=lambda pair: (pair[0], pair[1].name))[1]

    def complete(self, request: Request) -> Completion:
        """Answer a request, by the member that its first message falls to."""
        return self.choose(request.messages[0].content, "").complete(request)

    def _score(self, llm: LLM, weight: float, document_id: str, task: str) -> float:
        text = f"{self._seed}\0{document_id}\0{task}\0{llm.name}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        even = (int.from_bytes(digest[:8], "big") + 0.5) / _SPAN  # between 0 and 1, neither included
        return -weight / math.log(min(even, 1 - 1e-16))
