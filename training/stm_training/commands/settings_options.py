"""Command line options made from a settings class, so that each has one description and one default."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from stm_retriever.errors import ConfigError

_NONE = "none"
Settings = TypeVar("Settings", bound=BaseModel)


def add_settings(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    settings: type[BaseModel],
    *,
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Add an option per field; one that is not given leaves the class's default.

    Args:
        parser: Gets the options: ``--learning-rate`` for ``learning_rate``.
        settings: The class.
        defaults: Field -> what the help says of its default, where the command has one of its own.
    """
    for name, field in settings.model_fields.items():
        option = "--" + name.replace("_", "-")
        default = (defaults or {}).get(name, _shown(field.default))
        description = (field.description or "").replace("null:", f"{_NONE}:")
        text = f"{description} (default: {default})".replace("%", "%%")
        kind = _without_none(field.annotation)
        if kind is bool:
            parser.add_argument(
                option, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        elif get_origin(kind) is Literal:
            parser.add_argument(option, dest=name, choices=get_args(kind), help=text)
        else:
            parser.add_argument(
                option, dest=name, type=_reader(kind, field), metavar=_metavar(kind), help=text
            )


def read_settings(
    arguments: argparse.Namespace, settings: type[Settings], defaults: Mapping[str, Any] | None = None
) -> Settings:
    """The settings that the options give.

    Args:
        arguments: Parsed by a parser that :func:`add_settings` filled.
        settings: The class.
        defaults: Values of fields whose options are not given.

    Raises:
        ConfigError: If a value cannot be; names the option and the value.
    """
    given = {name: value for name in settings.model_fields if (value := getattr(arguments, name)) is not None}
    values = dict(defaults or {}) | {name: None if value == _NONE else value for name, value in given.items()}
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_problem, error.errors()))) from None


def _problem(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return text
    return f"--{str(problem['loc'][0]).replace('_', '-')} {problem['input']}: {text}"


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _reader(kind: Any, field: FieldInfo) -> Callable[[str], Any]:
    takes_none = NoneType in get_args(field.annotation)

    def read(text: str) -> Any:
        if takes_none and text == _NONE:
            return _NONE
        if get_origin(kind) is tuple:
            one = get_args(kind)[0]
            parts = [part.strip() for part in text.split(",") if part.strip()]
            return tuple(parts if get_origin(one) is Literal else map(one, parts))  # pydantic knows the names
        return kind(text)

    read.__name__ = "value"  # argparse names it in "invalid value: ..."
    return read


def _metavar(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "NAME,..." if get_origin(get_args(kind)[0]) is Literal else "N,N,..."
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _shown(value: Any) -> str:
    if value is None or value == ():
        return _NONE
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
