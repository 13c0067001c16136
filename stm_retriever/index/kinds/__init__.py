"""Kinds of vector index, by plain names, behind one interface."""

from stm_retriever.index.kinds.building import load_index, new_index
from stm_retriever.index.kinds.protocol import Labels, Sample, VectorIndex, Vectors
from stm_retriever.index.kinds.recipes import KINDS, check_kind, resolve_kind
from stm_retriever.index.kinds.tuning import Tuned, tune

__all__ = [
    "KINDS",
    "Labels",
    "Sample",
    "Tuned",
    "VectorIndex",
    "Vectors",
    "check_kind",
    "load_index",
    "new_index",
    "resolve_kind",
    "tune",
]
