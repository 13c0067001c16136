"""One file per saved index: FAISS's own format, with the label of every row in its ``IndexIDMap``.

The labels are FAISS's ids, so the file means the same to any program that reads it with FAISS; -1 marks a
row whose vector was removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stm_retriever.errors import require
from stm_retriever.index.kinds.protocol import Labels


def write_rows(index: Any, labels: Labels, path: Path) -> None:
    """Write a FAISS index whose row i has the label ``labels[i]``.

    Raises:
        RuntimeError: If FAISS cannot write it.
    """
    faiss = require("faiss", extra="cpu", purpose="the vector index")
    wrapped = faiss.IndexIDMap(faiss.IndexFlat(index.d, index.metric_type))  # only takes an empty one itself
    wrapped.own_fields = False
    wrapped.index = index
    wrapped.ntotal = index.ntotal
    wrapped.is_trained = index.is_trained
    faiss.copy_array_to_vector(np.ascontiguousarray(labels, np.int64), wrapped.id_map)
    faiss.write_index(wrapped, str(path))


def read_rows(path: Path, dimension: int, *, mmap: bool) -> tuple[Any, Labels]:
    """Read what :func:`write_rows` wrote.

    Args:
        path: The file.
        dimension: What the vectors must have.
        mmap: Leave the vectors in the file; the index must not be changed then.

    Returns:
        The FAISS index and the label of every row.

    Raises:
        ValueError: If it is no such file, or of another dimension or metric.
        RuntimeError: If FAISS cannot read it.
    """
    faiss = require("faiss", extra="cpu", purpose="the vector index")
    wrapped = _read(faiss, str(path), mmap=mmap)
    if not isinstance(wrapped, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise ValueError(f"holds a {type(wrapped).__name__} without labels")
    index = faiss.downcast_index(wrapped.index)
    labels: Labels = faiss.vector_to_array(wrapped.id_map)
    if index.d != dimension or wrapped.d != dimension:
        raise ValueError(f"holds a {type(index).__name__} of {index.d} dimensions")
    signs = isinstance(index, faiss.IndexLSH)  # compares bits, whatever the metric says
    if index.metric_type != faiss.METRIC_INNER_PRODUCT and not signs:
        raise ValueError(f"holds a {type(index).__name__} with another metric than the inner product")
    if len(labels) != index.ntotal:
        raise ValueError(f"holds {index.ntotal} vectors and {len(labels)} labels")
    # Taking ownership from the wrapper breaks FAISS's Python types (1.15), so the wrapper is kept alive.
    index.referenced_objects = [wrapped]
    return index, labels


def _read(faiss: Any, path: str, *, mmap: bool) -> Any:
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) if mmap else 0
    try:
        return faiss.read_index(path, flag)
    except RuntimeError:
        if not flag:
            raise
        return faiss.read_index(path)  # a system or a kind of index without mapping
