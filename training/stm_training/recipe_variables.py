"""``${NAME}`` and ``${NAME:-default}`` in a recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path

from stm_retriever.errors import ConfigError
from stm_training.demo.base_model import find_base

# Where the collections of the benchmarks and the recorded completions lie, unless the environment says so.
_SHARED_FOLDERS = {"STM_DATA": "data", "STM_LLM": "llm", "STM_MODELS": "models"}
# A name alone, or a name and a colon and whatever follows: the latter must be a default, or it is a mistake.
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:\}|(?P<rest>:[^{}]*)(?P<end>[{}]|$))")


def expand_variables(text: str, folder: Path | None = None) -> str:
    """Replace variables as in a recipe that lies in ``folder`` (by default here).

    ``${NAME}`` is the environment's value, or one that we look for (``STM_DATA`` and its like); what is set
    to nothing is nothing. ``${NAME:-default}`` is the environment's value, and the default, as it stands,
    where that is not set or empty. Values are not looked at again.

    Raises:
        ConfigError: If one is not set and has no default, or is not written in one of these ways.
    """
    return _VARIABLE.sub(lambda match: _value(match, folder or Path.cwd()), text)


def _value(match: re.Match[str], folder: Path) -> str:
    name, rest = match["name"], match["rest"]
    if rest is None:
        return _variable(name, folder)
    if match["end"] != "}" or not rest.startswith(":-"):
        raise ConfigError(_malformed(name, match[0], nested=match["end"] == "{"))
    return os.environ.get(name) or rest.removeprefix(":-")


def _malformed(name: str, found: str, *, nested: bool) -> str:
    why = (
        "a default is taken as it stands and cannot hold braces or another variable"
        if nested
        else "it is neither ${NAME} nor ${NAME:-default}"
    )
    return (
        f"The recipe has {found!r}, and {why}, so nothing can be put in its place. Write ${{{name}}} and set "
        f"it: export {name}=VALUE; or write ${{{name}:-VALUE}}, with a plain text as VALUE."
    )


def _variable(name: str, folder: Path) -> str:
    if name in os.environ:
        return os.environ[name]
    if name == "STM_BASE":  # the benchmarks' base: the demo's, wherever it is found
        return str(find_base())
    if name in _SHARED_FOLDERS:
        for parent in (Path.cwd(), *Path.cwd().parents, folder, *folder.parents):
            candidate = parent / "shared" / _SHARED_FOLDERS[name]
            if candidate.is_dir():
                return str(candidate)
    message = (
        f"The recipe uses ${{{name}}}, which is not set, so what it stands for is unknown. "
        f"Set it: export {name}=/path; or give a default in the recipe: ${{{name}:-/path}}"
    )
    raise ConfigError(message)
