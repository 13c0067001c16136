"""Safetensors files of a folder: what lies in them, and reading a piece of one tensor.

The files are memory-mapped, so what is read is a view: its pages belong to the file, not to this process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stm_retriever.errors import ModelFolderError
from stm_training.merge.stream.pieces import Piece

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Stored types that are merged; tensors of others are buffers, which are kept as they are."""

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8} | {
    name: dtype.itemsize for name, dtype in FLOATS.items()
}


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it: name, shape, and the type's name in the safetensors format."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return _BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """How many bytes it takes on disk."""
        return self.numbers * self.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it can be merged."""
        return self.dtype in FLOATS


class TensorFiles:
    """Tensors of several safetensors files, by name; a context manager.

    Several threads may read at once.

    Args:
        files: The files; a name is in one of them.

    Raises:
        ModelFolderError: If a file is damaged, or a tensor has a type that cannot be copied (packed
            quantised numbers).
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.stored: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        self._handles: dict[str, Any] = {}
        self._open = ExitStack()
        try:
            for path in self.files:
                self._add(path)
        except BaseException:
            self._open.close()
            raise

    def _add(self, path: Path) -> None:
        try:
            handle = self._open.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            message = f"{path} cannot be read as safetensors: {error} Copy or download the file again."
            raise ModelFolderError(message) from error
        self.metadata.update(handle.metadata() or {})
        for name in handle.keys():
            entry = handle.get_slice(name)
            dtype = str(entry.get_dtype())
            if dtype not in _BYTES:
                message = (
                    f"{path} stores {name} as {dtype}, which is a quantised type: its numbers cannot be "
                    f"averaged. Merge the model in the floating type that it was quantised from."
                )
                raise ModelFolderError(message)
            self.stored[name] = Stored(name, tuple(entry.get_shape()), dtype)
            self._handles[name] = handle

    def read(self, name: str, piece: Piece) -> Tensor:
        """A piece of a tensor in its stored type: a view on the mapped file, not to be written to."""
        handle = self._handles[name]
        if not piece.index:
            scalar: Tensor = handle.get_tensor(name)
            return scalar
        part: Tensor = handle.get_slice(name)[piece.index]
        return part

    def whole(self, name: str) -> Tensor:
        """A small tensor as a whole."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor

    def close(self) -> None:
        """Close the files."""
        self._handles.clear()
        self._open.close()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def weight_files(folder: Path) -> list[Path]:
    """The weights of a model folder: one file, or the shards that its index names.

    Raises:
        ModelFolderError: If there are none, the index is broken, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*.bin")) + sorted(
            path.name for path in folder.glob("*.safetensors")
        )
        message = (
            f"{folder} has neither {SINGLE} nor {INDEX} (found: {others or 'no weights'}). Pickled weights "
            f"are never read: save the model with safe_serialization=True."
        )
        raise ModelFolderError(message)
    names = _shards(folder / INDEX)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        message = (
            f"{folder / INDEX} names {len(names)} files, of which {missing[:3]} "
            f"({len(missing)} in all) are not there. Copy or download the model again."
        )
        raise ModelFolderError(message)
    return [folder / name for name in names]


def _shards(index: Path) -> list[str]:
    try:
        mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names: Iterable[str] = mapped.values()
        found = sorted(set(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{index} is no index of safetensors shards: {error!r}. Copy or download the model again."
        raise ModelFolderError(message) from error
    outside = [name for name in found if not isinstance(name, str) or Path(name).name != name]
    if outside or not found:
        message = f"{index} names {outside or 'no file'}; shards lie beside it. Download the model again."
        raise ModelFolderError(message)
    return found
