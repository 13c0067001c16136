"""Checks of an index folder: is it whole, and does the model that it names still fit it?"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from stm_retriever.errors import StmError
from stm_retriever.folder import SERVING_FILES, read_manifest, resolve_folder
from stm_retriever.index.digest import digest_of
from stm_retriever.index.manifest import EmbedderRef, IndexManifest, read_index_manifest
from stm_retriever.index.store import DocumentStore
from stm_training.export.findings import Finding, ok, problem, warning

_INDEX_AGAIN = (
    "restore the folder from a backup, or: stm-train index DOCUMENTS --model MODEL --out NEW_FOLDER"
)


def check_index(folder: Path) -> list[Finding]:
    """Looks at an index folder without changing it.

    Args:
        folder: One that holds ``manifest.json``.
    """
    try:
        manifest = read_index_manifest(folder)
    except StmError as error:
        return [problem(str(error), _INDEX_AGAIN)]
    findings = [
        ok(
            f"index of kind {manifest.kind!r}, {manifest.dimension} dimensions, made with "
            f"{manifest.embedder}, generation {manifest.generation}"
        )
    ]
    findings += _check_store(folder / manifest.store, manifest)
    findings += _check_snapshot(folder, manifest)
    findings += _check_embedder(folder, manifest)
    return findings


def _check_store(path: Path, manifest: IndexManifest) -> list[Finding]:
    try:
        store = DocumentStore(path, dimension=manifest.dimension)
        try:
            owner, documents, newest = store.index_id(), store.count(), store.last_position()
        finally:
            store.close()
        damage = _damage(path)
    except (StmError, sqlite3.Error) as error:
        return [problem(f"{path.name}: {error}", _INDEX_AGAIN)]
    if damage is not None:
        return [problem(f"{path.name} is damaged: {damage}.", _INDEX_AGAIN)]
    if owner != manifest.index_id:
        return [problem(f"{path.name} belongs to another index; files were mixed.", _INDEX_AGAIN)]
    if manifest.snapshot is not None and manifest.snapshot.position > newest:
        return [
            problem(
                f"{path.name} is older than the vectors: it ends at change {newest}, the snapshot holds "
                f"change {manifest.snapshot.position}.",
                _INDEX_AGAIN,
            )
        ]
    return [ok(f"{path.name} is whole: {documents} documents")]


def _damage(path: Path) -> str | None:
    """What SQLite itself finds wrong with the file's pages."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        return None  # a folder that may only be read; the store above could be
    finally:
        connection.close()
    return None if answer == "ok" else " ".join(answer.split())


def _check_snapshot(folder: Path, manifest: IndexManifest) -> list[Finding]:
    snapshot = manifest.snapshot
    if snapshot is None:
        return [ok("no snapshot was written yet; opening replays the documents' vectors")]
    path = folder / snapshot.file
    rebuilt = f"open the index once and it is rebuilt: stm-train search {folder} 'any question'"
    if not path.is_file():
        return [warning(f"the snapshot {snapshot.file} is missing; opening takes longer.", rebuilt)]
    found = digest_of(path, snapshot.block_bytes)
    if found != snapshot.sha256:
        return [
            warning(
                f"the snapshot {snapshot.file} is damaged (sha256 {found[:12]}..., recorded "
                f"{snapshot.sha256[:12]}...) and will not be used.",
                rebuilt,
            )
        ]
    return [ok(f"the snapshot {snapshot.file} is whole: {snapshot.count} vectors")]


def _check_embedder(folder: Path, manifest: IndexManifest) -> list[Finding]:
    recorded = manifest.embedder
    if recorded.path is None and recorded.hub_name is None:
        return [
            ok(
                f"its vectors are of {recorded.name!r}, which is no retriever folder and cannot be checked "
                f"here; pass it: Retriever.open({str(folder)!r}, embedder=...)"
            )
        ]
    path = _model_folder(folder, recorded)
    pass_it = f"pass the model: Retriever.open({str(folder)!r}, embedder=Embedder.load(FOLDER))"
    if path is None:
        return [
            warning(
                f"the model {recorded.name!r} is not at {recorded.path!r} (from the index folder) any more"
                + (f", nor is {recorded.hub_name!r} in the local cache." if recorded.hub_name else "."),
                f"move it back there, or {pass_it}",
            )
        ]
    try:
        found = read_manifest(path)
    except StmError as error:
        return [problem(str(error), f"mend the model folder, or {pass_it}")]
    if found.fingerprint != recorded.fingerprint:
        return [
            problem(
                f"the index holds vectors of {recorded.name!r} ({recorded.fingerprint}), but "
                f"{str(path)!r} now holds {found.name!r} ({found.fingerprint}). The two do not compare.",
                f"index the documents again: stm-train index DOCUMENTS --model {path} --out NEW_FOLDER",
            )
        ]
    return [
        ok(f"its model {found.name!r} is at {str(path)!r} and fits (check that too: stm-train doctor {path})")
    ]


def _model_folder(folder: Path, recorded: EmbedderRef) -> Path | None:
    """Where the retriever would find the model, or None; nothing is downloaded."""
    if recorded.path is not None:
        path = (folder.resolve() / recorded.path).resolve()
        if path.is_dir():
            return path
    if recorded.hub_name is None:
        return None
    try:
        return resolve_folder(
            recorded.hub_name, revision=recorded.revision, local_files_only=True, patterns=SERVING_FILES
        )
    except StmError:
        return None
