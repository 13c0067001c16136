"""Prompt templates: text files that a user can copy and change, checked before anything is spent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from stm_retriever.errors import ConfigError
from stm_training.llm.markers import marked_document, marked_task

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_QUERY_PLACEHOLDERS = frozenset({"document", "count"})
_REQUIRED: Mapping[str, frozenset[str]] = {
    "query_question": _QUERY_PLACEHOLDERS,
    "query_claim": _QUERY_PLACEHOLDERS,
    "query_keywords": _QUERY_PLACEHOLDERS,
    "query_title": _QUERY_PLACEHOLDERS,
    "hard_negative": frozenset({"document", "query", "kind", "instruction", "mined_negative"}),
    "reask": frozenset({"reason"}),
}


@dataclass(frozen=True, slots=True)
class Template:
    """A checked prompt template.

    Attributes:
        name: Its file's name without the suffix.
        text: With ``{placeholder}`` wherever a value goes; other braces (JSON examples) stay as they are.
    """

    name: str
    text: str

    def render(self, **values: str) -> str:
        """Put values in; what a value itself holds is never replaced again."""
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.text)


def template_names() -> list[str]:
    """Names of the templates that there are."""
    return sorted(_REQUIRED)


def load_template(name: str, folder: Path | str | None = None) -> Template:
    """Load a template, from the user's folder where it holds one of that name, else ours.

    Args:
        name: One of :func:`template_names`.
        folder: With changed copies, named ``<name>.txt``.

    Returns:
        The template.

    Raises:
        ConfigError: If a placeholder, the task line or the document markers are missing, or a placeholder
            is unknown.
    """
    if name not in _REQUIRED:
        message = f"There is no prompt template {name!r}; there are {', '.join(template_names())}."
        raise ConfigError(message)
    own = None if folder is None else Path(folder) / f"{name}.txt"
    if own is not None and own.is_file():
        try:
            text = own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            message = f"The prompt template {own} is not UTF-8 (byte {error.start}). Save it as UTF-8."
            raise ConfigError(message) from error
        return check_template(name, text, str(own))
    text = resources.files("stm_training.synthesize").joinpath("templates", f"{name}.txt").read_text("utf-8")
    return check_template(name, text, f"{name}.txt")


def check_template(name: str, text: str, where: str) -> Template:
    """Check a template's placeholders and what a program must find in it.

    Raises:
        ConfigError: Naming what is missing or unknown.
    """
    required = _REQUIRED[name]
    found = set(_PLACEHOLDER.findall(text))
    missing, unknown = sorted(required - found), sorted(found - required)
    if missing or unknown:
        parts = [f"lacks {{{one}}}" for one in missing] + [f"has the unknown {{{one}}}" for one in unknown]
        message = (
            f"The prompt template {where} {', '.join(parts)}. It needs exactly "
            f"{', '.join(f'{{{one}}}' for one in sorted(required))}, each at least once."
        )
        raise ConfigError(message)
    if "document" in required and (
        marked_document(text) != "{document}" or marked_task(_named(text)) is None
    ):
        message = (
            f"The prompt template {where} needs a line 'Task: ...' as in the original, and {{document}} "
            "once, alone on its line between the lines <document> and </document>: recorded completions are "
            "found by them."
        )
        raise ConfigError(message)
    return Template(name, text.rstrip() + "\n")


def _named(text: str) -> str:
    return text.replace("{kind}", "question")
