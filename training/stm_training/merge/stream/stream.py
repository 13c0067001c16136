"""Merge model folders and adapters on disk into a new folder, without loading a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stm_retriever.atomic_write import flush_file, flush_folder
from stm_retriever.errors import ConfigError, MergeError
from stm_training.merge.curve import count_layers
from stm_training.merge.recipe import MergeRecipe
from stm_training.merge.stream.checks import check_adapter, check_model, settings_folder
from stm_training.merge.stream.folders import is_adapter, open_adapter, open_model
from stm_training.merge.stream.members import AdapterMember, FullMember, Member, adapter_member
from stm_training.merge.stream.merging import Merging, Progress
from stm_training.merge.stream.plan import SHARD_SIZE, MergePlan, make_plan
from stm_training.merge.stream.record import RECORD, source_record, write_record
from stm_training.merge.stream.small_files import copy_small_files
from stm_training.merge.stream.writer import TensorFileWriter, write_index

BASE = "base"
"""The base's name among the members; no member may have it."""


class StreamedMerge:
    """A merge of folders that has been checked and can be written; a context manager that closes the files.

    Members are LoRA adapters, full folders (sentence-transformers or plain transformers, one file or shards),
    or a mix. Arithmetic is float32; what comes out has the base's stored types.

    Args:
        base: The base's folder.
        members: Folder by member name. Those without a weight in the recipe must not be there.
        recipe: The merge.
        prompts_from: Whose prompts, pooling files and lengths the merged folder gets: ``base``, a member's
            name, or ``None`` to refuse members whose prompts differ.
        shard_size: Most bytes of weights in a file.
        threads: How many parameters to merge at once; ``None``: as many as there are processors.
        block: Most numbers of a parameter in a thread's hands; ``None``: by the memory there is for them.

    Raises:
        ModelFolderError: If a folder is missing, incomplete or damaged.
        MergeError: If the members do not fit the base.
        ConfigError: If the arguments contradict each other.
    """

    def __init__(
        self,
        base: Path,
        members: Mapping[str, Path],
        recipe: MergeRecipe,
        *,
        prompts_from: str | None = None,
        shard_size: int = SHARD_SIZE,
        threads: int | None = None,
        block: int | None = None,
    ) -> None:
        _check_names(members, recipe)
        self.recipe = recipe
        self._prompts_from = prompts_from
        self._sources = {BASE: base, **members}
        self._open = ExitStack()
        try:
            self._base = open_model(BASE, base)
            self._open.callback(self._base.tensors.close)
            notes: list[str] = []
            self._members: dict[str, Member] = {
                name: self._open_member(name, path, notes) for name, path in members.items()
            }
            full = [item.folder for item in self._members.values() if isinstance(item, FullMember)]
            self._settings, said = settings_folder(self._base, full, prompts_from)
        except BaseException:
            self._open.close()
            raise
        self.plan: MergePlan = make_plan(
            self._base,
            list(self._members.values()),
            shard_size=shard_size,
            threads=threads,
            block=block,
            notes=[*notes, *said],
        )

    def _open_member(self, name: str, path: Path, notes: list[str]) -> Member:
        if is_adapter(path):
            adapter = open_adapter(name, path)
            self._open.callback(adapter.tensors.close)
            check_adapter(self._base, adapter)
            return adapter_member(adapter, self._base)
        model = open_model(name, path)
        self._open.callback(model.tensors.close)
        notes += check_model(self._base, model)
        return FullMember(model)

    def kind(self, name: str) -> str:
        """``adapter`` or ``model``."""
        return "adapter" if isinstance(self._members[name], AdapterMember) else "model"

    def check_target(self, out: Path, *, overwrite: bool) -> None:
        """Refuse to write where something would be lost, or where there is no room.

        Raises:
            ConfigError: If the folder is taken, or is one of those that are read.
            MergeError: If the disk is too small.
        """
        refuse_taken(out, overwrite=overwrite)
        for name, path in self._sources.items():
            if path.resolve().is_relative_to(out.resolve()):
                message = f"--out {out} is or holds the folder of {name!r}, which is read. Choose another."
                raise ConfigError(message)
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        free, needed = shutil.disk_usage(parent).free, self.plan.write_bytes
        if free < needed:
            message = (
                f"The merged weights take {needed / 1e9:.2f} GB, but the disk of {parent} has "
                f"{free / 1e9:.2f} GB left. Make room, or choose an --out on another disk."
            )
            raise MergeError(message)

    def write(self, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> None:
        """Merge, and let the folder appear when it is whole.

        Args:
            out: The folder to make.
            overwrite: Whether a merged folder that is there may be replaced.
            progress: Called from several threads with the bytes written since the last call.

        Raises:
            ConfigError: If ``out`` is taken.
            MergeError: If a model holds NaN or infinite numbers, or the disk is full; nothing is left behind.
        """
        self.check_target(out, overwrite=overwrite)
        with _staging(out) as staging:
            folder = copy_small_files(self._base, self._settings, staging)
            records = self._write_weights(folder, progress)
            write_index(folder, self.plan.files)
            write_record(
                staging,
                recipe=self.recipe,
                base=records.pop(BASE),
                members=records,
                prompts_from=self._prompts_from,
                notes=self.plan.notes,
            )
            _flush_small_files(staging)
            _publish(staging, out)

    def _write_weights(self, folder: Path, progress: Progress | None) -> dict[str, dict[str, Any]]:
        metadata = {"format": "pt", **self._base.tensors.metadata}
        merging = Merging(
            self._base, self._members, self.recipe, count_layers(self._base.names.stored), self.plan
        )
        try:
            # The hashes are read beside the merge: the disk's bytes are in memory then.
            with ThreadPoolExecutor(1, "hash") as hashing, ExitStack() as files:
                hashes = {
                    name: hashing.submit(source_record, path, kind, tensors)
                    for name, path, kind, tensors in self._hashed()
                }
                writers: dict[str, TensorFileWriter] = {}
                for file, tensors in self.plan.files.items():
                    writer = files.enter_context(TensorFileWriter(folder / file, tensors, metadata))
                    writers |= dict.fromkeys((item.name for item in tensors), writer)
                try:
                    merging.run(writers, progress)
                except BaseException:
                    hashing.shutdown(wait=False, cancel_futures=True)
                    raise
                return {name: future.result() for name, future in hashes.items()}
        except OSError as error:
            message = f"The merged weights could not be written to {folder.parent}: {error} Nothing is left."
            raise MergeError(message) from error

    def _hashed(self) -> Iterator[tuple[str, Path, str, tuple[Path, ...]]]:
        yield BASE, self._sources[BASE], "model", self._base.tensors.files
        for name, member in self._members.items():
            yield name, self._sources[name], self.kind(name), member.tensors.files

    def close(self) -> None:
        """Close all files."""
        self._open.close()

    def __enter__(self) -> StreamedMerge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def merge_folders(
    base: Path,
    members: Mapping[str, Path],
    recipe: MergeRecipe,
    out: Path,
    *,
    prompts_from: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> MergePlan:
    """Merge folders on disk in one call; arguments and errors as :class:`StreamedMerge`.

    Returns:
        What was done.
    """
    with StreamedMerge(base, members, recipe, prompts_from=prompts_from, shard_size=shard_size) as merge:
        merge.write(out, overwrite=overwrite)
        return merge.plan


def _check_names(members: Mapping[str, Path], recipe: MergeRecipe) -> None:
    unknown = sorted(set(recipe.weights) - set(members))
    unused = sorted(set(members) - set(recipe.weights))
    if unknown or unused or BASE in members:
        message = (
            f"The members are {sorted(members)}, the weights are for {sorted(recipe.weights)}: every member "
            f"needs a weight and every weight a member, and {BASE!r} is the base itself, whose share is "
            f"base_weight."
        )
        raise ConfigError(message)


def refuse_taken(out: Path, *, overwrite: bool) -> None:
    """Refuse a target whose files a merge would destroy.

    Raises:
        ConfigError: If it is a file, holds anything but a merge, or holds one and may not be replaced.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file, not a folder. Choose another --out.")
    if not any(out.iterdir()):
        return
    if not (out / RECORD).is_file():
        message = (
            f"{str(out)!r} is not empty and holds no {RECORD}, so no merge made it. Replacing it could "
            f"destroy your files. Choose another --out, or empty the folder yourself."
        )
        raise ConfigError(message)
    if not overwrite:
        message = f"{str(out)!r} already holds a merged model. Choose another --out, or pass --overwrite."
        raise ConfigError(message)


def _flush_small_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":  # those are on disk already
            flush_file(path)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the target, gone at the end unless it was renamed."""
    folder = out.absolute().parent / f".{out.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, out: Path) -> None:
    """Rename the finished folder into place; an old one steps aside and comes back if that fails."""
    aside = staging.with_name(f".{out.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        out.rename(aside)
    try:
        os.rename(staging, out)
    except OSError:
        if aside.exists():
            aside.rename(out)
        raise
    flush_folder(out.absolute().parent)
    shutil.rmtree(aside, ignore_errors=True)
