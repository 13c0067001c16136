"""Instructions and prompts: how one becomes the other, and the file that holds a user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

from stm_retriever.errors import ConfigError, DataError
from stm_training.prompting.settings import INSTRUCTION

STM_TEMPLATE = "{instruction}\nQuery: "
"""How STM writes query prompts (arXiv 2602.04731): the task, a line break, and what follows is the query."""

# Prompts of published embedders: a label, the instruction, and what stands right before the query.
_KNOWN_FORMS = (
    re.compile(r"(?P<head>(?:Instruct|Instruction|Task): )?[^\n]+(?P<tail>\n[^\n]*)"),
    re.compile(r"(?P<head>task: )[^\n|]+(?P<tail> \| query: )"),
)
_LABEL = re.compile(r"[\w ]{1,20}: ?")


def infer_template(plain: str) -> str:
    r"""The template that keeps the form which a model was trained with.

    ``Instruct: ...\nQuery: `` (E5-instruct, Qwen3-Embedding) and ``task: ... | query: `` (EmbeddingGemma)
    keep all but the instruction; a bare label (``query: ``) stays right before the query; else STM's.
    """
    for form in _KNOWN_FORMS:
        match = form.fullmatch(plain)
        if match is not None:
            return f"{match['head'] or ''}{INSTRUCTION}{match['tail']}"
    return f"{INSTRUCTION}\n{plain}" if _LABEL.fullmatch(plain) else STM_TEMPLATE


def make_prompt(instruction: str, template: str) -> str:
    """Put an instruction into a template."""
    return template.replace(INSTRUCTION, instruction)


def read_candidates(path: Path | str, template: str) -> list[str]:
    r"""Read a user's list of prompts.

    Each line is an instruction, put into the template; a line in double quotes is a JSON string and is the
    whole prompt, verbatim (for a space at the end, or a line break as ``\n``). Empty lines and lines that
    begin with ``#`` are left out.

    Args:
        path: UTF-8 text file.
        template: With ``{instruction}`` in it.

    Returns:
        The prompts, in the order of the file, each once.

    Raises:
        DataError: If the file cannot be read, holds no prompt, or a quoted line is no JSON string.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"The list of prompts {file} cannot be read ({error}). Give a UTF-8 file, one per line."
        raise DataError(message) from error
    prompts = [
        _prompt(line.strip(), template, f"{file}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        message = f"{file} holds no prompt, so there is nothing to try. Write one instruction per line."
        raise DataError(message)
    return list(dict.fromkeys(prompts))


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ConfigError: If ``{instruction}`` is not in it exactly once.
    """
    if template.count(INSTRUCTION) != 1:
        message = f"The template {template!r} must hold {INSTRUCTION} exactly once, as in {STM_TEMPLATE!r}."
        raise ConfigError(message)
    return template


def _prompt(line: str, template: str, where: str) -> str:
    if not line.startswith('"'):
        return make_prompt(line, template)
    try:
        value = json.loads(line)
    except ValueError as error:
        message = (
            f"{where}: {line!r} begins with a quote but is no JSON string ({error}). Quote the whole line, "
            'as in "query: ", or leave the quotes out.'
        )
        raise DataError(message) from error
    return str(value)
