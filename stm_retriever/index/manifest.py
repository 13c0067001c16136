"""What an index folder says about itself: which model's vectors, which kind, which snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stm_retriever.atomic_write import write_bytes_atomically
from stm_retriever.errors import IndexFolderError
from stm_retriever.folder import InnerPath

MANIFEST_NAME = "manifest.json"
STORE_NAME = "documents.sqlite"
SCHEMA_VERSION = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbedderRef(_Strict):
    """The model whose vectors lie in the index, and where it was.

    The path is relative to the index folder where the two share a drive, so that both can be moved together;
    None for an embedder that is not ours and cannot be loaded from a folder.
    """

    name: str
    fingerprint: str
    dimension: int = Field(ge=1)
    variant: str
    path: str | None = None
    hub_name: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name!r} ({self.fingerprint[:19]}..., {self.dimension} dimensions)"


class SnapshotRef(_Strict):
    """A saved vector index and the last change that is in it.

    Attributes:
        file: Its name in the folder.
        sha256: What :func:`~stm_retriever.index.digest.digest_of` gives for the file.
        block_bytes: The blocks that ``sha256`` is made of; None, as in older manifests, for the whole file.
        position: The last change that is in it.
        count: How many vectors it holds.
    """

    file: InnerPath
    sha256: str
    block_bytes: int | None = Field(default=None, ge=1 << 12)
    position: int = Field(ge=0)
    count: int = Field(ge=0)


class IndexManifest(_Strict):
    """What ``manifest.json`` holds.

    Attributes:
        kind: The kind of vector index that was asked for; ``"auto"`` chooses anew at each rebuild.
        built_kind: The kind that the snapshot has, where that is another one; None for the same.
        store: The file with documents and vectors; re-encoding writes a new one beside the old.
        search_parameters: What the tuner found for this kind, for instance ``{"nprobe": 16}``.
        generation: Raised with each snapshot.
    """

    schema_version: int = SCHEMA_VERSION
    index_id: str
    embedder: EmbedderRef
    kind: str
    metric: Literal["cosine"] = "cosine"
    precision: Literal["float32"] = "float32"
    dimension: int = Field(ge=1)
    built_kind: str | None = None
    store: InnerPath = STORE_NAME
    search_parameters: dict[str, int | float] = {}
    generation: int = Field(default=0, ge=0)
    snapshot: SnapshotRef | None = None
    created_by: str


def is_index_folder(path: Path) -> bool:
    """Tell whether a folder is an index, by its manifest."""
    return (Path(path) / MANIFEST_NAME).is_file()


def write_index_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Write the manifest atomically."""
    text = manifest.model_dump_json(indent=2) + "\n"
    write_bytes_atomically(folder / MANIFEST_NAME, text.encode("utf-8"))


def read_index_manifest(folder: Path, *, oldest: int = SCHEMA_VERSION) -> IndexManifest:
    """Read and check an index folder's manifest.

    Args:
        folder: The index folder.
        oldest: The lowest schema version that is taken.

    Raises:
        IndexFolderError: If folder or manifest are missing, broken, or of a newer or older schema.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise IndexFolderError(
            f"No index folder {str(folder)!r}. Check the path, or make one: "
            "Retriever.create(path, embedder=...) or stm-train index"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise IndexFolderError(
            f"{str(folder)!r} has no {MANIFEST_NAME}, so it is no index folder, or a part of one. "
            "Check the path, or make one: Retriever.create(path, embedder=...) or stm-train index"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IndexFolderError(
            f"{str(path)!r} cannot be read ({error}), so it is not known which model's vectors these are. "
            "Restore the file from a backup, or index the documents again."
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise IndexFolderError(
            f"{str(path)!r} has schema version {version}; this stm-retriever reads up to {SCHEMA_VERSION}. "
            "Run: pip install --upgrade stm-retriever"
        )
    if isinstance(version, int) and version < oldest:
        raise IndexFolderError(
            f"{str(path)!r} has schema version {version}, made by an older stm-retriever; this one reads "
            f"{SCHEMA_VERSION}. Nothing need be encoded again. Run: stm-train upgrade {folder}"
        )
    try:
        return IndexManifest.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()[:5]
        )
        raise IndexFolderError(
            f"{str(path)!r} is not a manifest that can be trusted: {problems}. "
            "Restore the file from a backup, or index the documents again."
        ) from error
