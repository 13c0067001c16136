"""A commented recipe, written from the fields' own documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stm_training.finetune.section import ExpertSection
from stm_training.recipe import GuardSection, QueriesSection, Recipe

_INDENT = "  "
# Mappings whose keys the user chooses: shown with one example entry.
_MAPPINGS: dict[str, tuple[str, type[BaseModel]]] = {
    "domains": ("forum", QueriesSection),
    "guards": ("general", GuardSection),
    "experts": ("questions", ExpertSection),
}


@dataclass(frozen=True)
class _Line:
    """A line of the recipe; unset ones are commented out so that removing ``# `` sets them."""

    text: str
    is_set: bool
    indent: str = ""  # under the nearest line that is set
    inner: str = ""  # under a line that is not set
    is_comment: bool = False

    def render(self) -> str:
        text = f"# {self.text}" if self.is_comment else self.text
        if self.is_comment and not self.inner:
            return self.indent + text  # a comment needs no second '#'
        return self.indent + ("" if self.is_set else "# ") + self.inner + text

    def deeper(self, parent_set: bool) -> _Line:
        if parent_set:
            return replace(self, indent=_INDENT + self.indent)
        return replace(self, is_set=False, indent="", inner=_INDENT + self.indent + self.inner)


def commented_recipe(values: dict[str, Any]) -> str:
    """Render a recipe with every key, its meaning and its default.

    Args:
        values: Keys that are set; everything else appears as a comment with its default.

    Returns:
        YAML text that :func:`stm_training.recipe.load_recipe` accepts.
    """
    text = ["# A recipe for stm-train. Lines that are commented out show the defaults."]
    for name, info in Recipe.model_fields.items():
        text.append("")
        text += [line.render() for line in _field(name, info, values.get(name), name in values)]
    return "\n".join(text) + "\n"


def _field(name: str, info: FieldInfo, value: Any, is_set: bool) -> Iterator[_Line]:
    if info.description:
        yield _Line(info.description, is_set, is_comment=True)
    section = _section_of(info)
    if name in _MAPPINGS:
        example, entry = _MAPPINGS[name]
        entries = value if is_set and value else {example: {}}
        yield _Line(f"{name}:", is_set)
        for key, fields in entries.items():
            yield from (line.deeper(is_set) for line in _section(key, entry, fields, is_set))
    elif section is not None:
        # A section with nothing set would read as null, which is another thing than its defaults.
        yield from _section(name, section, value or {}, is_set and bool(value))
    else:
        yield _Line(f"{name}: {_scalar(value if is_set else _default(info))}", is_set)


def _section(name: str, section: type[BaseModel], values: dict[str, Any], is_set: bool) -> Iterator[_Line]:
    first_paragraph = (section.__doc__ or "").strip().split("\n\n")[0]
    yield _Line(" ".join(first_paragraph.split()), is_set, is_comment=True)
    yield _Line(f"{name}:", is_set)
    for child, info in section.model_fields.items():
        for line in _field(child, info, values.get(child), child in values):
            yield line.deeper(is_set)


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    for candidate in (info.annotation, *get_args(info.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True)
    return None if default is PydanticUndefined else default


def _scalar(value: Any) -> str:
    """JSON is YAML; numbers stay readable."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
