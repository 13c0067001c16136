"""What a user asks to be merged: options, a file, or both. Reads no model and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from stm_retriever.errors import ConfigError, require
from stm_training.merge.recipe import MergeRecipe, Method

METHOD_HELP: Mapping[str, str] = {
    "linear": "weighted mean of the members (and of the base, with --base-weight); model soup",
    "slerp": "along the arc between two models, then on to the next; the base is one with --base-weight",
    "task_arithmetic": "base plus the weighted sum of what each member changed; weights need not add up to 1",
    "ties": "each member's largest changes (--density), a sign elected per number, mean of those that agree",
    "dare_linear": "changes dropped at random (--density is kept), the rest enlarged, weighted sum",
    "dare_ties": "changes dropped at random, the rest enlarged, signs elected as in ties",
    "breadcrumbs": "the largest (--gamma) and the smallest changes dropped, weighted sum of those between",
    "model_stock": "mean of the members, drawn to the base as far as the angles between them say",
}
"""Every method in a line."""

# Here only the weights' ratios count, so that leaving them out can only mean: all alike.
_RELATIVE = ("linear", "slerp", "ties", "dare_ties", "model_stock")
_OWN_KEYS = ("base", "members", "prompts_from")


@dataclass(frozen=True)
class MergeRequest:
    """A merge as it was asked for.

    Attributes:
        base: Folder or hub name.
        members: Folder or hub name by member.
        recipe: How.
        prompts_from: Whose prompts the merged folder keeps, where that was chosen.
    """

    base: str
    members: Mapping[str, str]
    recipe: MergeRecipe
    prompts_from: str | None = None


@dataclass
class Asked:
    """What was given, before it is checked.

    Attributes:
        base: Folder or hub name.
        members: Folder or hub name by member.
        weights: Weight by member.
        fields: Other fields of :class:`MergeRecipe`, ``method`` among them.
        prompts_from: Whose prompts the merged folder keeps.
    """

    base: str | None = None
    members: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    prompts_from: str | None = None

    def over(self, other: Asked) -> Asked:
        """This one, and what it leaves open from another."""
        return Asked(
            base=self.base or other.base,
            members=other.members | self.members,
            weights=other.weights | self.weights,
            fields=other.fields | self.fields,
            prompts_from=self.prompts_from or other.prompts_from,
        )

    def request(self) -> MergeRequest:
        """Check it.

        Raises:
            ConfigError: If something is missing or cannot be.
        """
        for value, option in (
            (self.base, "--base"),
            (self.members, "--member"),
            (self._method(), "--method"),
        ):
            if not value:
                message = f"{option} is missing: a merge needs a base, at least one member and a method."
                raise ConfigError(message)
        unknown = sorted(set(self.weights) - set(self.members))
        if unknown:
            message = f"There are weights for {unknown}, but the members are {sorted(self.members)}."
            raise ConfigError(message)
        recipe = _recipe(self.fields | {"weights": self._weights()})
        return MergeRequest(str(self.base), self.members, recipe, self.prompts_from)

    def _method(self) -> str:
        return str(self.fields.get("method") or "")

    def _weights(self) -> dict[str, float]:
        missing = [name for name in self.members if name not in self.weights]
        if missing and (self.weights or self._method() not in _RELATIVE):
            message = (
                f"{missing} have no weight, and {self._method()} cannot do without: "
                f"--weights {','.join(f'{name}=0.5' for name in missing)}"
            )
            raise ConfigError(message)
        return {name: self.weights.get(name, 1.0) for name in self.members}


def parse_member(text: str) -> tuple[str, str, float | None]:
    """Read ``NAME=FOLDER[:WEIGHT]``.

    Raises:
        ConfigError: If it has no such form.
    """
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"--member {text!r}: write NAME=FOLDER or NAME=FOLDER:WEIGHT.")
    head, colon, tail = folder.rpartition(":")
    if colon and not Path(folder).expanduser().exists():
        try:
            return name, head, float(tail)
        except ValueError:
            pass
    return name, folder, None


def parse_values(option: str, text: str) -> float | dict[str, float]:
    """Read ``0.5`` or ``a=0.5,b=0.3``.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        found = {name.strip(): float(value) for name, value in pairs}
        if len(found) < len(pairs):
            raise ConfigError(f"{option} {text!r} names a member twice.")
        return found
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{option} {text!r}: write one number, or NAME=NUMBER,NAME=NUMBER.") from None


def parse_size(text: str) -> int:
    """Read a size in bytes: ``2GB``, ``500MB``, ``1GiB``, or a number.

    Raises:
        ConfigError: If it is none, or not above 0.
    """
    factors = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    upper = text.strip().upper()
    unit = next((unit for unit in factors if upper.endswith(unit)), "")
    try:
        size = int(float(upper.removesuffix(unit)) * factors.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"--shard-size {text!r}: write a size like 2GB, 500MB or 1GiB.")
    return size


def read_request(path: Path) -> Asked:
    """Read a merge from YAML or JSON, or from the ``merge.json`` of an earlier merge.

    Keys are ``base``, ``members`` (name -> folder), ``prompts_from`` and those of :class:`MergeRecipe`.
    Folders are taken relative to the file.

    Raises:
        ConfigError: If the file cannot be read or has other keys.
    """
    yaml = require("yaml", extra="train", purpose="reading a merge recipe")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--recipe {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"--recipe {path} holds no keys; it needs method, weights, members, ...")
    if isinstance(document.get("recipe"), dict):  # merge.json
        document = {key: document[key] for key in _OWN_KEYS if key in document} | document["recipe"]
    known = [*_OWN_KEYS, *MergeRecipe.model_fields]
    unknown = [key for key in document if key not in known]
    members, weights = document.get("members") or {}, document.get("weights") or {}
    if unknown or not isinstance(members, dict) or not isinstance(weights, dict):
        found = f"unknown keys {unknown}" if unknown else "members or weights that are no NAME: VALUE"
        raise ConfigError(f"--recipe {path} has {found}; there are {known}.")
    base = document.get("base")
    return Asked(
        base=None if base is None else _folder(base, path.parent),
        members={str(name): _folder(value, path.parent) for name, value in members.items()},
        weights=_numbers(weights, path),
        fields={
            key: document[key] for key in MergeRecipe.model_fields if key in document and key != "weights"
        },
        prompts_from=document.get("prompts_from"),
    )


def _folder(value: Any, beside: Path) -> str:
    text = str(value["path"] if isinstance(value, dict) and "path" in value else value)
    near = beside / Path(text).expanduser()
    return str(near) if near.exists() else text  # else a hub name, or an error when it is opened


def _numbers(weights: Mapping[Any, Any], path: Path) -> dict[str, float]:
    wrong = {name: value for name, value in weights.items() if not isinstance(value, int | float)}
    if wrong:
        raise ConfigError(f"--recipe {path}: the weights {wrong} are no numbers.")
    return {str(name): float(value) for name, value in weights.items()}


def _recipe(values: Mapping[str, Any]) -> MergeRecipe:
    try:
        return MergeRecipe.model_validate(values)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'merge'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise ConfigError("; ".join(problems)) from None


def methods() -> Sequence[str]:
    """The names of all methods."""
    return get_args(Method)
