"""``merge.json``: what a merged folder was made of, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stm_training.export.hashes import sha256_of
from stm_training.export.layout import write_json
from stm_training.export.machine import installed_version, versions
from stm_training.merge.recipe import MergeRecipe

RECORD = "merge.json"
_FORMAT = 1


def source_record(path: Path, kind: str, files: Sequence[Path]) -> dict[str, Any]:
    """Which files a model was read from, with their hash; reads all of their bytes.

    Args:
        path: The folder as it was given.
        kind: ``model`` or ``adapter``.
        files: Its weights.
    """
    names = [file.name for file in files]
    return {"path": str(path), "kind": kind, "files": names, "sha256": sha256_of(files)}


def write_record(
    folder: Path,
    *,
    recipe: MergeRecipe,
    base: Mapping[str, Any],
    members: Mapping[str, Mapping[str, Any]],
    prompts_from: str | None,
    notes: Sequence[str],
) -> None:
    """Write ``merge.json``; the same merge gives the same bytes."""
    found = versions() | {"safetensors": installed_version("safetensors") or "unknown"}
    document = {
        "format": _FORMAT,
        "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
        "base": dict(base),
        "members": {name: dict(record) for name, record in members.items()},
        "prompts_from": prompts_from,
        "notes": list(notes),
        "versions": {name: found[name] for name in ("stm-retriever", "python", "torch", "safetensors")},
    }
    write_json(folder / RECORD, document)
