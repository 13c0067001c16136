"""Write a safetensors file of known size, its numbers in any order and from several threads.

The format (https://huggingface.co/docs/safetensors, "Format"): the header's length as 8 little-endian bytes,
the header as JSON, the numbers. The file gets its full size at the start, so a full disk shows at once, and
nothing but the piece at hand is in memory.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stm_training.merge.stream.tensor_files import INDEX, SINGLE, Stored

_ALIGNMENT = 8  # numbers begin at a multiple of it, so that every type can be mapped


class TensorFileWriter:
    """One file; a context manager that forces it to disk at the end.

    Args:
        path: The file to make.
        tensors: What it will hold.
        metadata: Free text by key.

    Raises:
        OSError: If the disk has no room.
    """

    def __init__(self, path: Path, tensors: Sequence[Stored], metadata: Mapping[str, str]) -> None:
        self.path = path
        # Wide types first keep every tensor aligned without holes, which the format forbids.
        ordered = sorted(tensors, key=lambda item: (-item.itemsize, item.name))
        header, places, size = _header(ordered, metadata)
        self._start = {name: len(header) + place for name, place in places.items()}
        self._itemsize = {item.name: item.itemsize for item in tensors}
        self._lock = threading.Lock()
        self._file = path.open("w+b")
        try:
            self._file.write(header)
            self._file.flush()
            _reserve(self._file.fileno(), len(header) + size)
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, offset: int, numbers: Tensor) -> None:
        """Put numbers into their place.

        Args:
            name: The tensor.
            offset: Place of the first number in the flattened tensor.
            numbers: In the stored type, any shape.
        """
        flat = numbers.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        data: memoryview = flat.data
        place = self._start[name] + offset * self._itemsize[name]
        while data:
            done = self._write_at(data, place)
            data, place = data[done:], place + done

    def _write_at(self, data: memoryview, place: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), data, place)
        with self._lock:  # Windows
            self._file.seek(place)
            return self._file.write(data)

    def close(self, *, keep: bool = True) -> None:
        """Close the file; force it to disk first, unless it is not kept."""
        if not self._file.closed:
            if keep:
                os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep=kind is None)


def _header(tensors: Sequence[Stored], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    places: dict[str, int] = {}
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    size = 0
    for item in tensors:
        places[item.name] = size
        ends = [size, size + item.bytes]
        fields[item.name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": ends}
        size = ends[1]
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, places, size


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)  # unlike a truncation it fails now where the disk is too small
    else:
        os.truncate(file, size)


def shards(tensors: Sequence[Stored], shard_size: int) -> dict[str, list[Stored]]:
    """Share tensors out over files, in their order; one that is larger than a shard gets its own.

    Args:
        tensors: All of a model's.
        shard_size: Most bytes of numbers in a file.

    Returns:
        File name -> its tensors; the single name ``model.safetensors`` where all fit into one.
    """
    groups: list[list[Stored]] = [[]]
    filled = 0
    for item in tensors:
        if groups[-1] and filled + item.bytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += item.bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def write_index(folder: Path, files: Mapping[str, Sequence[Stored]]) -> None:
    """Write which shard holds which tensor, as transformers reads it; nothing for a single file."""
    if list(files) == [SINGLE]:
        return
    total = sum(item.bytes for items in files.values() for item in items)
    numbers = sum(item.numbers for items in files.values() for item in items)
    mapped = {item.name: file for file, items in files.items() for item in items}
    document = {
        "metadata": {"total_parameters": numbers, "total_size": total},
        "weight_map": dict(sorted(mapped.items())),
    }
    (folder / INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
