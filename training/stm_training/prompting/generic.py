"""Generic prompts that name no domain, drawn per training query (STM's "random prompts")."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from stm_retriever.errors import ConfigError, LLMError
from stm_training.data.leakage import normalise
from stm_training.data.records import Pair
from stm_training.llm.base import LLM, JsonSchema, Message, Request
from stm_training.llm.journal import Journal
from stm_training.prompting.lint import PromptLinter
from stm_training.prompting.template_text import render
from stm_training.synthesize.asking import Asker, TaskFailed
from stm_training.synthesize.parsing import UnusableAnswer, parse_queries
from stm_training.synthesize.prompts import load_template

_PER_REQUEST = 10
_LONGEST = 150
_SCHEMA = JsonSchema(
    "prompts",
    {
        "type": "object",
        "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
        "required": ["prompts"],
        "additionalProperties": False,
    },
)


def shipped_prompts() -> list[str]:
    """The instructions that come with this package."""
    text = resources.files("stm_training.prompting").joinpath("generic_prompts.txt").read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def generic_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Draw ``count`` of the shipped instructions, in an order of the seed's; a larger count holds a smaller.

    Raises:
        ConfigError: If there are not so many.
    """
    known = shipped_prompts()
    if not 1 <= count <= len(known):
        message = (
            f"{count} generic prompts are asked for, and {len(known)} are shipped. Ask for 1 to "
            f"{len(known)}, let an LLM write more (prompting.generic.write_generic_prompts), "
            "or give a file."
        )
        raise ConfigError(message)
    order = np.random.default_rng(seed).permutation(len(known))
    return [known[index] for index in order[:count]]


def assign_prompts(
    pairs: Sequence[Pair], prompts: Sequence[str], *, seed: int = 0, overwrite: bool = False
) -> list[Pair]:
    """Give each training query one of the prompts.

    The draw depends on the seed and the query's text alone: pairs of one query share a prompt, and neither
    the order of the pairs nor the other pairs matter.

    Args:
        pairs: Training pairs.
        prompts: Whole prompts, put before the query verbatim (see ``candidates.make_prompt``).
        seed: Another seed, another draw.
        overwrite: Also replace prompts that pairs have already.

    Returns:
        The pairs in their order, with ``prompt`` set.

    Raises:
        ConfigError: If there are no prompts.
    """
    if not prompts:
        message = "There are no prompts to draw from. Give at least one."
        raise ConfigError(message)
    return [
        pair
        if pair.prompt is not None and not overwrite
        else replace(pair, prompt=prompts[_draw(pair.query, seed) % len(prompts)])
        for pair in pairs
    ]


def _draw(query: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{query}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def write_generic_prompts(
    llm: LLM, count: int, *, journal: Path | None = None, seed: int = 0, temperature: float = 0.7
) -> list[str]:
    """Let a language model write generic instructions.

    Args:
        llm: The model.
        count: How many.
        journal: File of completions; with it, nothing is asked twice.
        seed: Passed to the model with each request.
        temperature: Of the sampling.

    Returns:
        ``count`` different instructions that the linter lets pass.

    Raises:
        LLMError: If the model did not write so many in three times as many requests as should do.
    """
    if count < 1:
        message = f"{count} prompts are asked for; ask for at least 1."
        raise ConfigError(message)
    with tempfile.TemporaryDirectory(prefix="stm-prompts-") as folder:
        with Journal(journal or Path(folder) / "journal.jsonl") as rows:
            return _write(Asker(llm, rows, reask=load_template("reask")), count, seed, temperature)


def _write(asker: Asker, count: int, seed: int, temperature: float) -> list[str]:
    linter = PromptLinter(max_characters=_LONGEST)
    found: dict[str, str] = {}
    refused: list[str] = []
    for number in range(3 * -(-count // _PER_REQUEST)):
        wanted = min(_PER_REQUEST, count - len(found))
        request = _request(wanted, list(found.values()), seed + number, temperature)
        try:
            texts, _ = asker.ask(f"generic-{number}", "prompt/generic", request, _parse)
        except TaskFailed as failed:
            refused.append(failed.failure.reason)
            continue
        for text in texts:
            findings = linter.check(text)
            refused += [f"{text!r}: {finding}" for finding in findings]
            if not findings:
                found.setdefault(normalise(text), text)
        if len(found) >= count:
            return list(found.values())[:count]
    examples = "; ".join(refused[:3]) or "it repeated itself"
    message = (
        f"The LLM wrote {len(found)} of {count} usable generic prompts. Refused: {examples}. Ask for fewer, "
        "raise the temperature, or use the shipped ones."
    )
    raise LLMError(message)


def _request(count: int, known: Sequence[str], seed: int, temperature: float) -> Request:
    listed = "- Repeat none of these:\n" + "\n".join(f"  {text}" for text in known) + "\n" if known else ""
    text = render("generic", count=str(count), limit=str(_LONGEST), known=listed)
    return Request(
        (Message("user", text),), temperature=temperature, max_tokens=1024, seed=seed, json_schema=_SCHEMA
    )


def _parse(answer: str) -> list[str]:
    renamed = re.sub(r'"(?:prompts|instructions)"\s*:', '"queries":', answer)  # the one list that is parsed
    texts = parse_queries(renamed, limit=2 * _PER_REQUEST)
    if not texts:
        raise UnusableAnswer(f"it holds no list of the form {json.dumps({'prompts': ['...']})}")
    return texts
