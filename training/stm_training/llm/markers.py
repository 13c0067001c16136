"""What a program can read in our prompts: where the document stands, and which task is asked.

Prompt templates put the document between :data:`DOCUMENT_START` and :data:`DOCUMENT_END`, and name the task
on a line of its own before it. A model may read both; a server that replays recorded completions must.
"""

from __future__ import annotations

import re

DOCUMENT_START = "<document>\n"
DOCUMENT_END = "\n</document>"
QUERY_TASK = "query/"
NEGATIVE_TASK = "hard_negative/"

_TASK = re.compile(r"^Task: (?P<task>[a-z_]+/[a-z_0-9]+)\s*$", re.MULTILINE)


def marked_document(prompt: str) -> str | None:
    """The text between the first start and the last end marker, or ``None`` if there is no such pair."""
    start = prompt.find(DOCUMENT_START)
    end = prompt.rfind(DOCUMENT_END)
    if start < 0 or end < start + len(DOCUMENT_START):
        return None
    return prompt[start + len(DOCUMENT_START) : end]


def marked_task(prompt: str) -> str | None:
    """The task named before the document, for instance ``query/question``; ``None`` if there is none."""
    start = prompt.find(DOCUMENT_START)
    match = _TASK.search(prompt[:start] if start >= 0 else prompt)
    return match["task"] if match else None


def task_of_schema(name: str) -> str | None:
    """The task in a JSON schema's name: ``query_question`` is ``query/question``."""
    for prefix in (QUERY_TASK, NEGATIVE_TASK):
        flat = prefix.replace("/", "_")
        if name.startswith(flat) and len(name) > len(flat):
            return prefix + name.removeprefix(flat)
    return None


def schema_of_task(task: str) -> str:
    """A JSON schema's name for a task; servers allow no slash in it."""
    return task.replace("/", "_")
