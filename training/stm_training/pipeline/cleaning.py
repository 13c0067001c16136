"""What may be removed from a run folder, and the removal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stm_retriever.errors import ConfigError
from stm_training.pipeline.stages import RECORD, run_lock

SCRATCH, PARTIAL = "scratch", ".partial"
_OWN_FILES = (".lock", "completions.journal.jsonl")


@dataclass(frozen=True)
class Item:
    """One folder that goes.

    Attributes:
        path: Of the folder.
        size: Bytes that it frees.
        what: In words.
    """

    path: Path
    size: int
    what: str


@dataclass(frozen=True)
class Cleaning:
    """What goes from a run folder.

    Attributes:
        folder: The run folder.
        items: What goes.
        foreign: What lies there and is none of ours; it stays.
    """

    folder: Path
    items: tuple[Item, ...]
    foreign: tuple[Path, ...]


def plan_cleaning(folder: Path, keep: Sequence[str] | None = None) -> Cleaning:
    """Find out what goes; nothing is removed.

    Args:
        folder: The run folder.
        keep: Stages that stay while all others go; ``None``: all stages stay, scratch files go.

    Raises:
        ConfigError: If this is no run folder, a stage to keep is not there, or the index would be kept
            without the retriever that it is searched with.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    stages = {path.name: path for path in entries if _is_stage(path)}
    if not stages and not any(path.name == SCRATCH and _is_own_folder(path) for path in entries):
        message = (
            f"{folder} is no run folder: nothing in it has the {RECORD} of a finished stage, and there is no "
            f"{SCRATCH} folder. Give the folder that stm-train run wrote, for instance runs/my-retriever."
        )
        raise ConfigError(message)
    if keep is not None:
        _check_kept(folder, keep, stages)
    items, foreign = [], []
    for path in entries:
        if path.name in stages:
            if keep is not None and path.name not in keep:
                items.append(Item(path, _size(path), "a finished stage; the next run makes it again"))
        elif path.name == SCRATCH and _is_own_folder(path):
            items.append(Item(path, _size(path), "checkpoints and scratch files"))
        elif path.name.endswith(PARTIAL) and _is_own_folder(path):
            items.append(Item(path, _size(path), "left half written by a stopped run"))
        elif path.name not in _OWN_FILES:
            foreign.append(path)
    return Cleaning(folder, tuple(items), tuple(foreign))


def carry_out(plan: Cleaning) -> list[Path]:
    """Remove what was planned, under the run's lock.

    A folder is renamed first: where a program has one of its files open on Windows, the rename fails and the
    folder stays whole; a kill in between leaves a ``.partial`` folder that no run takes for a stage.

    Returns:
        What is in use, and stays.

    Raises:
        ConfigError: If a run is working in the folder.
    """
    failed = []
    with run_lock(plan.folder):
        for item in plan.items:
            doomed = item.path.with_name(f"{item.path.name}.gone{PARTIAL}")
            try:
                if doomed.exists():
                    shutil.rmtree(doomed)
                item.path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError:
                failed.append(item.path)
    return failed


def _check_kept(folder: Path, keep: Sequence[str], stages: dict[str, Path]) -> None:
    unknown = [name for name in keep if name not in stages]
    if unknown or not keep:
        message = (
            f"{folder} has no finished stage {', '.join(unknown) or '(none was named)'}, and nothing was "
            f"removed. Stages there: {', '.join(stages) or 'none'}."
        )
        raise ConfigError(message)
    if "index" in keep and "retriever" in stages and "retriever" not in keep:
        message = (
            "--keep index without retriever: the index is searched with the retriever beside it, which would "
            "be gone. Keep both (--keep retriever,index), or neither."
        )
        raise ConfigError(message)


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_stage(path: Path) -> bool:
    """A folder with a stage's record of its own name; links lead elsewhere and are not ours."""
    if not _is_own_folder(path):
        return False
    try:
        found = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("stage") == path.name and "key" in found


def _size(path: Path) -> int:
    return sum(item.lstat().st_size for item in path.rglob("*") if item.is_symlink() or item.is_file())
