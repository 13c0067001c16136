"""Adds ONNX files to a retriever folder that is in use, without exporting the rest again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm_retriever.atomic_write import flush_file, write_bytes_atomically
from stm_retriever.errors import ConfigError, ModelFolderError
from stm_retriever.folder import TOKENIZER_NAME, Manifest, read_manifest, variant_file, write_manifest
from stm_training.export.card import with_export_section
from stm_training.export.hashes import sha256_of
from stm_training.export.onnx_graph import EXTERNAL_DATA_ABOVE
from stm_training.export.parity import LONGEST_CHECKED, write_parity
from stm_training.export.target import staging
from stm_training.export.variant_kinds import FP32, check_variants
from stm_training.export.variant_words import PARITY_NAME, read_parity
from stm_training.export.variants import Progress, make_variants

if TYPE_CHECKING:
    from stm_training.pipeline.collections import Problem


def add_variants(
    folder: str | Path,
    variants: Sequence[str],
    *,
    dev: Sequence[Problem] = (),
    longest_checked: int = LONGEST_CHECKED,
    external_data_above: int = EXTERNAL_DATA_ABOVE,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Makes variants from the folder's fp32 file; what is there already stays as it is.

    The new files are made and judged beside the folder, then moved in, and the manifest, which alone makes
    them known, is written last: readers see the old folder or the new one, and a crash leaves at most files
    that nothing names.

    Args:
        folder: A retriever folder with its fp32 file.
        variants: Those to have; those it has already are skipped.
        dev: Development queries on which each new variant is compared with fp32.
        longest_checked: Cap of the longest input that the gate tries.
        external_data_above: Weights of more bytes than this go into a file of their own.
        progress: Called with a line before each step.

    Returns:
        The manifest as it is now.

    Raises:
        ConfigError: If a variant is unknown, or there is no fp32 file to make it from.
        ModelFolderError: If the folder is none of ours, or its fp32 file is not the recorded one.
        ExportParityError: If any variant misses a limit; the folder is then as it was.
    """
    folder = Path(folder)
    check_variants(variants)
    manifest = read_manifest(folder)
    new = [name for name in dict.fromkeys(variants) if name not in manifest.variants]
    if not new:
        return manifest
    fp32 = _checked_fp32(folder, manifest)
    with staging(folder) as beside:
        for path in (folder / TOKENIZER_NAME, *fp32):
            _link(path, beside / path.relative_to(folder))
        changed, reports = make_variants(
            beside,
            manifest,
            new,
            dev=dev,
            longest_checked=longest_checked,
            external_data_above=external_data_above,
            progress=progress,
        )
        _move_in(beside, folder, changed, new)
    parity = {**read_parity(folder), **{name: found.as_dict() for name, found in reports.items()}}
    write_parity(folder / PARITY_NAME, parity)
    _renew_card(folder, changed, parity)
    write_manifest(folder, changed)
    return changed


def _checked_fp32(folder: Path, manifest: Manifest) -> list[Path]:
    if FP32 not in manifest.variants:
        raise ConfigError(
            f"{str(folder)!r} was written without fp32 (it has {', '.join(manifest.variants)}), and the "
            f"others are made from that. Export anew: stm-train export {folder} --out NEW_FOLDER "
            "--variants fp32,w8"
        )
    entry = manifest.variants[FP32]
    files = [variant_file(folder, manifest, FP32), *(folder / name for name in entry.external_data)]
    found = sha256_of(files)
    if found != entry.sha256:
        raise ModelFolderError(
            f"{entry.file} in {str(folder)!r} has sha256 {found[:16]}..., the manifest recorded "
            f"{entry.sha256[:16]}...: what is made from it would be another model. Copy the folder again, or "
            f"export anew: stm-train export {folder} --out NEW_FOLDER"
        )
    return files


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _move_in(beside: Path, folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    mode = (folder / manifest.variants[FP32].file).stat().st_mode & 0o666
    for name in names:
        entry = manifest.variants[name]
        for file in (*entry.external_data, entry.file):
            (beside / file).chmod(mode)
            flush_file(beside / file)
            os.replace(beside / file, folder / file)


def _renew_card(folder: Path, manifest: Manifest, parity: dict[str, Any]) -> None:
    """Rewrites the card's export section alone: the rest may have been edited by its owner."""
    card = folder / "README.md"
    if card.is_file():
        text = with_export_section(card.read_text("utf-8"), manifest, parity)
        write_bytes_atomically(card, text.encode("utf-8"))
