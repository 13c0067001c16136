"""One hash for a file, or for several files that only make sense together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from stm_retriever.folder import sha256_file


def sha256_of(files: Sequence[Path]) -> str:
    """Returns the hash of one file's bytes, or of the sorted list of names and hashes of several.

    Weights in shards, and a graph with its external data, are several files and one thing.
    """
    if len(files) == 1:
        return sha256_file(files[0])
    lines = "".join(f"{file.name} {sha256_file(file)}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder: the one, or the shards; empty if there are none."""
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("model-*.safetensors"))
