"""The names that mteb gives to data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_NOT_LETTER = re.compile(r"[^a-z0-9]+")
_GENERATED = "training pairs"  # the manifest's word for pairs by the source that wrote them


def training_datasets(data: Sequence[Mapping[str, Any]]) -> set[str] | None:
    """What a manifest says that its model was trained on, by mteb's names where it has one.

    Args:
        data: The manifest's ``data``: entries with ``name``, and perhaps ``kind`` and ``hub_name``.

    Returns:
        The names, or None (not declared) where the manifest says nothing. Sources of pairs (``labelled``, the
        name of a language model) are no data sets and are left out, unless mteb knows them.
    """
    if not data:
        return None
    names = set()
    for entry in data:
        given = str(entry.get("hub_name") or entry.get("name") or "")
        known = _mteb_names().get(_plain(given)) or _mteb_names().get(_plain(given.rpartition("/")[2]))
        if known is not None:
            names.add(known)
        elif given and entry.get("kind") != _GENERATED:
            names.add(given)
    return names


@cache
def _mteb_names() -> dict[str, str]:
    from mteb.get_tasks import get_tasks

    names: dict[str, str] = {}
    tasks = [task.metadata for task in get_tasks(task_types=["Retrieval"])]
    for metadata in tasks:
        path = str(metadata.dataset["path"])
        for alias in (metadata.name.removesuffix("Retrieval"), path.rpartition("/")[2], path):
            names.setdefault(_plain(alias), metadata.name)
    return names | {_plain(metadata.name): metadata.name for metadata in tasks}


def _plain(name: str) -> str:
    return _NOT_LETTER.sub("", name.lower())
