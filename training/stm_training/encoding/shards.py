"""A folder of encoded documents: Parquet shards and the manifest that says what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stm_retriever.atomic_write import flush_file, flush_folder, write_bytes_atomically
from stm_retriever.errors import ArtifactMismatchError, ConfigError, DataError
from stm_training.data.records import Passage

if TYPE_CHECKING:
    from stm_retriever import Embedder
    from stm_retriever.types import Role

MANIFEST = "encoding.json"
SCHEMA_VERSION = 1


class Encoding(BaseModel):
    """What ``encoding.json`` holds.

    Attributes:
        schema_version: Of this file.
        model: Name of the model, for people.
        fingerprint: Of the retriever folder.
        variant: Which of its ONNX files.
        engine: What ran it.
        role: Whose prompt the texts got.
        dimension: Components of a vector.
        precision: How vectors are stored.
        documents: How many there are.
        shard_size: Documents per shard; the last one may be shorter.
        input_sha256: Over ids and texts, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    model: str
    fingerprint: str
    variant: str
    engine: str
    role: str
    dimension: int
    precision: str
    documents: int = Field(ge=0)
    shard_size: int = Field(ge=1)
    input_sha256: str

    @property
    def shards(self) -> int:
        """How many shards there are in all."""
        return -(-self.documents // self.shard_size)

    def rows(self, shard: int) -> slice:
        """The documents of a shard."""
        first = shard * self.shard_size
        return slice(first, min(first + self.shard_size, self.documents))


def describe(embedder: Embedder, passages: Sequence[Passage], role: Role, shard_size: int) -> Encoding:
    """What is about to be encoded.

    Raises:
        ConfigError: If ``shard_size`` is below 1.
    """
    if shard_size < 1:
        raise ConfigError(f"--shard-size {shard_size}: a shard holds at least one document. Pass 1 or more.")
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(json.dumps([passage.id, passage.content]).encode("utf-8", "surrogatepass"))
    return Encoding(
        model=embedder.name,
        fingerprint=embedder.fingerprint,
        variant=embedder.variant,
        engine=embedder.engine,
        role=role,
        dimension=embedder.dimension,
        precision=embedder.precision,
        documents=len(passages),
        shard_size=shard_size,
        input_sha256=digest.hexdigest(),
    )


def begin(folder: Path, encoding: Encoding) -> list[int]:
    """Make the folder, or check that what lies there is the same work.

    Returns:
        The shards that are still to be made.

    Raises:
        ArtifactMismatchError: If the folder holds another model's vectors, another input's, or others'.
        DataError: If its manifest cannot be read.
        ConfigError: If the folder holds other things.
    """
    path = folder / MANIFEST
    if path.is_file():
        _must_be_same(folder, _read(path), encoding)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{str(folder)!r} exists and holds something else than encoded documents (no {MANIFEST}); "
            "shards would mix with it. Name another folder: --out FOLDER"
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, (encoding.model_dump_json(indent=2) + "\n").encode("utf-8"))
    for left_over in folder.glob(".*.partial"):
        left_over.unlink(missing_ok=True)
    return [shard for shard in range(encoding.shards) if not shard_path(folder, shard).is_file()]


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies once it is whole."""
    return folder / f"shard-{shard:05d}.parquet"


def write_shard(path: Path, ids: Sequence[str], vectors: np.ndarray[Any, Any]) -> None:
    """Write a shard so that it is whole or not there.

    Args:
        path: Where it goes.
        ids: n ids.
        vectors: (n, width); columns ``id`` (string) and ``vector`` (fixed-size list of the same type).
    """
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
    table = pyarrow.table(
        {
            "id": pyarrow.array(ids, pyarrow.string()),
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    temporary = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(table, temporary)
    flush_file(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


def read_vectors(folder: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Read all shards of a finished folder.

    Returns:
        The ids, and the vectors (n, width) in the order of the input.

    Raises:
        DataError: If the folder is not finished.
    """
    import pyarrow.parquet

    encoding = _read(folder / MANIFEST)
    missing = [shard for shard in range(encoding.shards) if not shard_path(folder, shard).is_file()]
    if missing:
        raise DataError(
            f"{str(folder)!r} lacks {len(missing)} of {encoding.shards} shards, the first "
            f"{shard_path(folder, missing[0]).name}. Run the same stm-train encode again; it goes on there."
        )
    ids: list[str] = []
    parts = []
    for shard in range(encoding.shards):
        table = pyarrow.parquet.read_table(shard_path(folder, shard)).combine_chunks()
        ids += table["id"].to_pylist()
        column = table["vector"].combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(len(table), column.type.list_size))
    return ids, np.concatenate(parts)


def _must_be_same(folder: Path, found: Encoding, wanted: Encoding) -> None:
    differences = [
        f"{name} {getattr(found, name)!r} there, {getattr(wanted, name)!r} now"
        for name in Encoding.model_fields
        if name != "model" and getattr(found, name) != getattr(wanted, name)
    ]
    if differences:
        raise ArtifactMismatchError(
            f"{str(folder)!r} holds vectors of another run: {'; '.join(differences)}. Shards of both would "
            "not belong together. Repeat the first run's options to go on with it, or name another folder: "
            "--out FOLDER"
        )


def _read(path: Path) -> Encoding:
    try:
        return Encoding.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{str(path)!r} does not say what was encoded here ({error!s:.300}). Encode into another folder."
        ) from error
