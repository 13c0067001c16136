"""Saved vector indexes: written beside the old one, checked by hash before FAISS reads a byte.

A snapshot only saves time at the next open. Whatever is wrong with it, the vectors are in the store. One that
this user's programs did not write is tried out in a child process first: see :mod:`.kinds.trust`.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from stm_retriever.atomic_write import flush_file, flush_folder
from stm_retriever.errors import IndexFolderError
from stm_retriever.index.digest import block_size, digest_of
from stm_retriever.index.kinds.trust import is_known, remember, try_out
from stm_retriever.index.manifest import IndexManifest, SnapshotRef
from stm_retriever.index.vectors import VectorIndex, load_index

logger = logging.getLogger(__name__)

_PATTERN = "vectors-*.faiss*"


def save_snapshot(folder: Path, index: VectorIndex, *, generation: int, position: int) -> SnapshotRef:
    """Write an index to ``vectors-<generation>.faiss``.

    Args:
        folder: The index folder.
        index: What is saved.
        generation: A number that no snapshot of the folder has had.
        position: The last change that is in ``index``.

    Raises:
        IndexFolderError: If it cannot be written; nothing else has changed then.
    """
    path = folder / f"vectors-{generation}.faiss"
    partial = path.with_name(path.name + ".partial")
    try:
        index.save(partial)
        flush_file(partial)
        blocks = block_size(partial)
        digest = digest_of(partial, blocks)
        partial.replace(path)
        flush_folder(folder)
    except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError when the disk is full
        partial.unlink(missing_ok=True)
        raise IndexFolderError(
            f"The snapshot {str(path)!r} cannot be written ({error}). No document is lost, but the next open "
            "takes longer. Free disk space, and close the index again."
        ) from error
    remember(digest)
    return SnapshotRef(file=path.name, sha256=digest, block_bytes=blocks, position=position, count=len(index))


def load_snapshot(
    folder: Path, manifest: IndexManifest, *, mmap: bool = True, verify_in_child: bool | None = None
) -> VectorIndex | None:
    """Load the snapshot that the manifest names; None, with a log line why, if it cannot be trusted.

    Args:
        folder: The index folder.
        manifest: With ``kind`` as the snapshot has it, and the search parameters to set.
        mmap: Leave the vectors in the file instead of reading them into memory.
        verify_in_child: Whether to open and search the file in a child process first, which takes about a
            second; None for files that were not written or tried out by this user's programs.
    """
    wanted = manifest.snapshot
    if wanted is None:
        return None
    path = folder / wanted.file
    try:
        found = digest_of(path, wanted.block_bytes)
        if found != wanted.sha256:
            raise ValueError(f"sha256 is {found}, the manifest says {wanted.sha256}")
        if verify_in_child or (verify_in_child is None and not is_known(found)):
            try_out(path, manifest.kind, manifest.dimension)
            remember(found)
        index = load_index(
            manifest.kind, manifest.dimension, path, mmap=mmap, parameters=manifest.search_parameters
        )
        if len(index) != wanted.count:
            raise ValueError(f"holds {len(index)} vectors, the manifest says {wanted.count}")
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning("Snapshot %s is not usable (%s); rebuilding it from the documents.", path, error)
        return None
    return index


def remove_others(folder: Path, keep: str | None) -> None:
    """Delete snapshots, whole or partial, that the manifest does not name."""
    for path in folder.glob(_PATTERN):
        if path.name != keep:
            with contextlib.suppress(PermissionError):  # Windows, while it is mapped
                path.unlink(missing_ok=True)
