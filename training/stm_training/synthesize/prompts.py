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
STYLE = "style"
"""Where personas and difficulties go; a template may lack it while none are asked for."""
_WRITE = "stm-train synthesize --write-templates"
_REQUIRED: Mapping[str, frozenset[str]] = {
    "query_question": _QUERY_PLACEHOLDERS,
    "query_claim": _QUERY_PLACEHOLDERS,
    "query_keywords": _QUERY_PLACEHOLDERS,
    "query_title": _QUERY_PLACEHOLDERS,
    "query_long": _QUERY_PLACEHOLDERS,
    "query_few_shot": _QUERY_PLACEHOLDERS | {"examples"},
    "hard_negative": frozenset({"document", "query", "kind", "instruction", "mined_negative"}),
    "task_list": frozenset({"domain", "count", "known"}),
    "task_pair": frozenset({"domain", "task", "variation"}),
    "reask": frozenset({"reason"}),
}
_TASK_LINE_ONLY = ("task_list", "task_pair")


@dataclass(frozen=True, slots=True)
class Template:
    """A checked prompt template.

    Attributes:
        name: Its file's name without the suffix.
        text: With ``{placeholder}`` wherever a value goes; other braces (JSON examples) stay as they are.
    """

    name: str
    text: str

    def has(self, placeholder: str) -> bool:
        """Whether a value of that name would go anywhere."""
        return placeholder in _PLACEHOLDER.findall(self.text)

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
    if folder is not None and not Path(folder).is_dir():
        message = f"There is no folder of prompt templates at {folder}. Write one: {_WRITE} {folder}"
        raise ConfigError(message)
    own = None if folder is None else Path(folder) / f"{name}.txt"
    if own is not None and own.is_file():
        try:
            text = own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            message = f"The prompt template {own} is not UTF-8 (byte {error.start}). Save it as UTF-8."
            raise ConfigError(message) from error
        return check_template(name, text, str(own))
    return check_template(name, _shipped(name), f"{name}.txt")


def write_templates(folder: Path | str) -> list[Path]:
    """Write every template into a folder, to be changed there; nothing that is there is replaced.

    Returns:
        The files, in order of their names.

    Raises:
        ConfigError: If one of them is there already.
    """
    folder = Path(folder)
    files = [folder / f"{name}.txt" for name in template_names()]
    there = [file for file in files if file.exists()]
    if there:
        message = (
            f"{there[0]} is there already, and would lose its changes. Give another folder, or delete the "
            "templates that you did not change: ours are used for those that a folder lacks."
        )
        raise ConfigError(message)
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in zip(template_names(), files, strict=True):
        file.write_text(_shipped(name), encoding="utf-8")
    return files


def check_templates(folder: Path | str) -> list[str]:
    """Check every template in a user's folder.

    Returns:
        Names of the templates that it holds.

    Raises:
        ConfigError: For a broken template, or a file whose name is no template's: it would never be used.
    """
    names = [file.stem for file in sorted(Path(folder).glob("*.txt"))]
    for name in names:
        load_template(name, folder)
    return names


def check_template(name: str, text: str, where: str) -> Template:
    """Check a template's placeholders and what a program must find in it.

    Raises:
        ConfigError: Naming what is missing or unknown.
    """
    required = _REQUIRED[name]
    found = set(_PLACEHOLDER.findall(text))
    optional = {STYLE} if name.startswith("query_") else set()
    missing, unknown = sorted(required - found), sorted(found - required - optional)
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
    if name in _TASK_LINE_ONLY and marked_task(text) is None:
        message = f"The prompt template {where} needs a line 'Task: ...' as in the original."
        raise ConfigError(message)
    return Template(name, text.rstrip() + "\n")


def _shipped(name: str) -> str:
    return resources.files("stm_training.synthesize").joinpath("templates", f"{name}.txt").read_text("utf-8")


def _named(text: str) -> str:
    return text.replace("{kind}", "question")
