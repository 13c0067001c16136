"""Where a folder is written: beside its place first, and renamed into it when whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm_retriever.atomic_write import flush_file
from stm_retriever.errors import ConfigError
from stm_retriever.folder import MANIFEST_NAME


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raises ConfigError unless a retriever folder may be put here without losing anything."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file, not a folder. Choose another --out.")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise ConfigError(
            f"{str(out)!r} is not empty and holds no {MANIFEST_NAME}, so it is none of ours. Replacing it "
            "could destroy your files. Choose another --out, or empty the folder yourself."
        )
    if not overwrite:
        raise ConfigError(
            f"{str(out)!r} already holds a retriever folder. An index built with it may still need it. "
            "Choose another --out, or pass --overwrite (overwrite=True) to replace it."
        )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end unless it was renamed."""
    folder = out.absolute().parent / f".{out.name}.partial"
    _remove(folder)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def settle(folder: Path) -> None:
    """Gives every file the usual mode (safetensors writes for the owner alone) and forces it to disk."""
    mode = (folder / "config.json").stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            flush_file(path)


def publish(finished: Path, out: Path) -> None:
    """Renames the finished folder into place; an old one steps aside and comes back if that fails."""
    if not out.exists():
        finished.rename(out)
        return
    aside = finished.with_name(f".{out.name}.replaced")
    _remove(aside)
    out.rename(aside)
    try:
        finished.rename(out)
    except OSError:
        aside.rename(out)
        raise
    _remove(aside)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
