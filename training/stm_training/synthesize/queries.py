"""Asking a language model for queries that a passage answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stm_retriever.errors import ConfigError
from stm_training.data.records import Passage
from stm_training.llm.base import JsonSchema, Message, Request
from stm_training.llm.markers import QUERY_TASK, schema_of_task
from stm_training.synthesize.prompts import Template
from stm_training.synthesize.styles import PLAIN, Style

LLM_KINDS = ("question", "claim", "keywords", "title", "long", "few_shot")
DEFAULT_LLM_KINDS = ("question", "claim", "keywords")

_QUERIES_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
    "required": ["queries"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is asked.

    Attributes:
        temperature: For queries and negatives alike.
        max_tokens: Longest answer, in tokens.
        per_kind: Queries of each kind per passage.
        seed: Each request's own seed is derived from it, the passage and the task.
    """

    temperature: float = 0.7
    max_tokens: int = 512
    per_kind: int = 1
    seed: int = 0

    def request_seed(self, document_id: str, task: str) -> int:
        """A seed that does not depend on the order of requests (31 bits, as servers want them)."""
        digest = hashlib.sha256(
            f"{self.seed}\0{document_id}\0{task}".encode("utf-8", "surrogatepass")
        ).digest()
        return int.from_bytes(digest[:4], "big") >> 1


def check_kinds(kinds: tuple[str, ...], known: tuple[str, ...], generator: str) -> None:
    """Check the kinds of queries that are asked for.

    Raises:
        ConfigError: For none, a repeated or an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in known]
    if not kinds or unknown or len(set(kinds)) < len(kinds):
        message = (
            f"Query kinds {list(kinds)} cannot be made by {generator}: name at least one, each once, of "
            f"{', '.join(known)}."
        )
        raise ConfigError(message)


def query_task(kind: str) -> str:
    """The task's name for a kind of query."""
    return QUERY_TASK + kind


def query_request(
    passage: Passage, kind: str, template: Template, sampling: Sampling, style: Style = PLAIN
) -> Request:
    """The request for one kind of query about one passage."""
    task = query_task(kind)
    prompt = template.render(
        document=passage.content,
        count=str(sampling.per_kind),
        style=style.lines(passage.id, task, sampling.seed),
        examples=style.examples(passage.id, sampling.seed),
    )
    return Request(
        messages=(Message("user", prompt),),
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=sampling.request_seed(passage.id, task),
        json_schema=JsonSchema(schema_of_task(task), _QUERIES_SCHEMA),
    )
