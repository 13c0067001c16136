"""What rewrites the vector index of a folder: snapshots, compaction, another kind, tuned parameters.

All of this is called by the folder's only writer, so the log does not grow meanwhile; searches go on. The
manifest is written last: until then, and after a crash at any point, the folder is what it was.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stm_retriever.errors import ConfigError
from stm_retriever.index.live import LiveIndex, built
from stm_retriever.index.manifest import IndexManifest, write_index_manifest
from stm_retriever.index.reading import Reader
from stm_retriever.index.snapshot import remove_others, save_snapshot
from stm_retriever.index.store import DocumentStore
from stm_retriever.index.vectors import Labels, Vectors, new_index, resolve_kind

if TYPE_CHECKING:
    from stm_retriever.index.kinds import Tuned

VACUUM_SHARE = 0.25  # rewriting the file costs its size; below this share of free pages they are used again
_TUNING_QUERIES = 200


def save(
    path: Path, store: DocumentStore, live: LiveIndex, manifest: IndexManifest, *, rebuild: bool = False
) -> IndexManifest:
    """Save the vector index at the store's present state, rebuilt first if that helps.

    Args:
        path: The index folder.
        store: Its documents.
        live: Its vector index.
        manifest: As it is on disk.
        rebuild: Look whether a rebuild helps although this state is saved already.

    Returns:
        The manifest that is on disk now.

    Raises:
        IndexFolderError: If it cannot be written.
    """
    with store.reading() as reader:
        _catch_up(reader, live)
        saved = manifest.snapshot
        is_saved = saved is not None and saved.position == live.position and os.path.isfile(path / saved.file)
        if is_saved and not rebuild:
            return manifest
        if _worn(live, manifest, reader.count()):
            _replace(reader, live, manifest)
        elif is_saved:
            return manifest
    return _write(path, store, live, manifest)


def changed_kind(
    path: Path, store: DocumentStore, live: LiveIndex, manifest: IndexManifest, kind: str
) -> IndexManifest:
    """Build another kind of vector index from the stored vectors and save it. Returns the new manifest."""
    if kind == manifest.kind:
        return save(path, store, live, manifest)
    wanted = manifest.model_copy(update={"kind": kind, "built_kind": None, "search_parameters": {}})
    with store.reading() as reader:
        _catch_up(reader, live)
        _replace(reader, live, wanted)
    return _write(path, store, live, wanted)


def tuned(
    path: Path,
    store: DocumentStore,
    live: LiveIndex,
    manifest: IndexManifest,
    *,
    recall: float,
    k: int,
    queries: Vectors | None,
) -> tuple[Tuned, IndexManifest]:
    """Tune the search parameters against exact search, and keep them in the manifest.

    Returns:
        What was found, and the new manifest.

    Raises:
        ConfigError: If the index is empty.
    """
    from stm_retriever.index.kinds import tune

    with store.reading() as reader:
        _catch_up(reader, live)
        if reader.count() == 0:
            raise ConfigError(
                f"The index {str(path)!r} is empty; there is nothing to tune on. Add documents."
            )
        if queries is None:
            queries = reader.sample(_TUNING_QUERIES)
        exact = _exact(reader, queries, k, manifest.dimension)
    with live.gate.alone():  # the parameters change while it measures
        result = tune(live.alive(), queries, exact, recall=recall, k=k)
    parameters = dict(result.parameters)
    wanted = manifest.model_copy(update={"search_parameters": parameters})
    return result, _write(path, store, live, wanted)


def remove_other_stores(path: Path, keep: str) -> None:
    """Delete the documents' files that a re-encoding or an upgrade has replaced."""
    for old in path.glob("documents*.sqlite*"):
        if not old.name.startswith(keep):
            old.unlink(missing_ok=True)


def _catch_up(reader: Reader, live: LiveIndex) -> None:
    with live.gate.alone():
        live.replay(reader)


def _worn(live: LiveIndex, manifest: IndexManifest, count: int) -> bool:
    """Whether another build would be better: many tombstones, or ``auto`` now chooses another kind."""
    kind, _ = resolve_kind(manifest.kind, count=count, dimension=manifest.dimension)
    return live.alive().stale is not None or kind != live.built_kind


def _replace(reader: Reader, live: LiveIndex, manifest: IndexManifest) -> None:
    """Build beside the index that is searched meanwhile; the log stands still."""
    index, kind = built(reader, manifest)
    with live.gate.alone():
        live.take(index, manifest, kind, reader.last_position())


def _write(path: Path, store: DocumentStore, live: LiveIndex, manifest: IndexManifest) -> IndexManifest:
    generation = manifest.generation + 1
    live.gate.enter()
    try:
        ref = save_snapshot(path, live.alive(), generation=generation, position=live.position)
    finally:
        live.gate.leave()
    kind = None if live.built_kind == manifest.kind else live.built_kind
    written = manifest.model_copy(update={"generation": generation, "snapshot": ref, "built_kind": kind})
    write_index_manifest(path, written)
    with store.writing() as writer:
        writer.trim(ref.position, ref.sha256)
    remove_others(path, ref.file)
    return written


def _exact(reader: Reader, queries: Vectors, k: int, dimension: int) -> list[Labels]:
    flat = new_index("flat", dimension)
    for labels, vectors in reader.all_vectors():
        flat.add(labels, np.ascontiguousarray(vectors))
    return flat.search(queries, k)
