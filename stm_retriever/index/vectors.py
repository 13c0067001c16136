"""The names of :mod:`stm_retriever.index.kinds` that the index folder uses."""

from stm_retriever.index.kinds import (
    Labels,
    VectorIndex,
    Vectors,
    check_kind,
    load_index,
    new_index,
    resolve_kind,
)

__all__ = ["Labels", "VectorIndex", "Vectors", "check_kind", "load_index", "new_index", "resolve_kind"]
