"""Asking a language model for a hard negative: a document that looks like the answer and is not.

The demands are those of Synthesize-Train-Merge (arXiv 2602.04731, the prompt for hard negatives).
"""

from __future__ import annotations

from stm_training.data.records import Passage
from stm_training.llm.base import Message, Request
from stm_training.llm.markers import NEGATIVE_TASK
from stm_training.synthesize.prompts import Template
from stm_training.synthesize.queries import Sampling

DEFAULT_INSTRUCTION = "Given a query, retrieve documents that answer it."
NO_MINED_NEGATIVE = "(none is known; think of what a keyword search would return)"


def negative_task(kind: str) -> str:
    """The task's name for the negative of a query of that kind."""
    return NEGATIVE_TASK + kind


def negative_request(
    passage: Passage,
    query: str,
    kind: str,
    template: Template,
    sampling: Sampling,
    *,
    instruction: str = DEFAULT_INSTRUCTION,
    mined_negative: str | None = None,
) -> Request:
    """The request for a passage's hard negative.

    Args:
        passage: The positive.
        query: The query that the negative must not answer.
        kind: That query's kind.
        template: The ``hard_negative`` template.
        sampling: How the model is asked.
        instruction: The retrieval task, in words.
        mined_negative: A passage that a retriever wrongly returned, where one is known.

    Returns:
        The request; its answer is plain text.
    """
    prompt = template.render(
        document=passage.content,
        query=query,
        kind=kind,
        instruction=instruction,
        mined_negative=mined_negative or NO_MINED_NEGATIVE,
    )
    return Request(
        messages=(Message("user", prompt),),
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=sampling.request_seed(passage.id, negative_task(kind)),
    )
