"""Stages that survive a kill: keyed by what goes in, written aside, made visible by one rename.

A stage's folder exists only when it is whole, and holds ``stage.json`` with the key of its inputs,
settings and code. A second run skips every stage whose key is there.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_retriever import __version__
from stm_retriever.errors import ConfigError, require
from stm_retriever.folder import sha256_file

RECORD = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One finished stage: where its output lies, and the key that it answers to."""

    name: str
    path: Path
    key: str
    seconds: float
    skipped: bool


@dataclass
class StageRunner:
    """Runs stages in one run folder.

    Attributes:
        folder: The run folder.
        total: How many stages the run has, for the numbering that a person sees.
        announce: Called with one line when a stage starts or is skipped.
    """

    folder: Path
    total: int
    announce: Callable[[str], None] = lambda line: None
    finished: list[Stage] = field(default_factory=list)

    def run(
        self,
        name: str,
        work: Callable[[Path], None],
        *,
        settings: Any,
        inputs: Sequence[Stage | Path] = (),
        code: Sequence[str] = (),
    ) -> Stage:
        """Run a stage unless its result is already there.

        Args:
            name: Name of the stage, and of its folder in the run folder.
            work: Writes the output into the folder that it is given. That folder is renamed to its final
                name afterwards, so the work must not store its own absolute path.
            settings: Whatever decides the output beside the inputs; must be JSON-serialisable.
            inputs: Earlier stages, or files and folders, that the work reads.
            code: Packages whose source decides the output.

        Returns:
            The finished stage.
        """
        number = f"[{len(self.finished) + 1}/{self.total}]"
        key = stage_key(name, settings=settings, inputs=inputs, code=code)
        target = self.folder / name
        stage = _finished(name, target, key)
        if stage is not None:
            self.announce(f"{number} {name}: already done")
        else:
            self.announce(f"{number} {name}")
            stage = self._perform(name, target, key, work)
        self.finished.append(stage)
        return stage

    def _perform(self, name: str, target: Path, key: str, work: Callable[[Path], None]) -> Stage:
        partial = target.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        started = time.monotonic()
        try:
            work(partial)
            seconds = round(time.monotonic() - started, 2)
            record = {"stage": name, "key": key, "seconds": seconds, "version": __version__}
            (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            _replace_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # after an error or Ctrl-C; a kill leaves it to us
        return Stage(name, target, key, seconds, skipped=False)

    def seconds(self) -> dict[str, float]:
        """Seconds that each stage took when it was really run."""
        return {stage.name: stage.seconds for stage in self.finished}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of the same run folder.

    Raises:
        ConfigError: If another process is running there.
    """
    filelock = require("filelock", extra="train", purpose="running a recipe")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        message = f"Another process is working in {folder}. Wait for it to end, or give another --run-folder."
        raise ConfigError(message) from error
    try:
        yield
    finally:
        lock.release()


def stage_key(name: str, *, settings: Any, inputs: Sequence[Stage | Path], code: Sequence[str]) -> str:
    """Hash over all that decides a stage's output."""
    parts = {
        "stage": name,
        "settings": settings,
        "inputs": [item.key if isinstance(item, Stage) else content_digest(item) for item in inputs],
        "code": {package: source_digest(package) for package in sorted(code)},
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Hash of a file, or of a folder's files with their relative names."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def source_digest(package: str) -> str:
    """Hash of the source and the data files of a package or module, so that changed code runs again."""
    top, _, rest = package.partition(".")
    node = importlib.resources.files(top)
    for part in rest.split(".") if rest else ():
        node = node / part
    digest = hashlib.sha256()
    if not node.is_dir():
        digest.update((node.parent / f"{node.name}.py").read_bytes())  # type: ignore[attr-defined]
        return digest.hexdigest()
    root = Path(str(node))
    for file in sorted(root.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _finished(name: str, target: Path, key: str) -> Stage | None:
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    if record.get("key") != key:
        return None
    return Stage(name, target, key, float(record.get("seconds", 0.0)), skipped=True)


def _replace_folder(source: Path, target: Path) -> None:
    old = target.with_name(f"{target.name}.old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
