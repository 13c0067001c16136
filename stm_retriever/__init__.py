"""Serve a retriever: load a retriever folder, encode texts, keep and search an index.

Everything heavy is imported when it is first used; ``import stm_retriever`` itself loads next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stm_retriever._version import __version__
from stm_retriever.errors import (
    ArtifactMismatchError,
    ConfigError,
    DataError,
    ExportParityError,
    IndexFolderError,
    LLMError,
    MergeError,
    MissingExtraError,
    ModelFolderError,
    ProviderError,
    StmError,
    TrainingError,
)
from stm_retriever.types import Document, Hit

if TYPE_CHECKING:
    from stm_retriever.embedder import Embedder
    from stm_retriever.encoding.pool import EmbedderPool
    from stm_retriever.retriever import Retriever

__all__ = [
    "ArtifactMismatchError",
    "ConfigError",
    "DataError",
    "Document",
    "Embedder",
    "EmbedderPool",
    "ExportParityError",
    "Hit",
    "IndexFolderError",
    "LLMError",
    "MergeError",
    "MissingExtraError",
    "ModelFolderError",
    "ProviderError",
    "Retriever",
    "StmError",
    "TrainingError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Written out rather than through a table, so that the objects stay easy to find from here.
    if name == "Embedder":
        from stm_retriever.embedder import Embedder

        return Embedder
    if name == "EmbedderPool":
        from stm_retriever.encoding.pool import EmbedderPool

        return EmbedderPool
    if name == "Retriever":
        from stm_retriever.retriever import Retriever

        return Retriever
    raise AttributeError(f"module 'stm_retriever' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
