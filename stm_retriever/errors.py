"""The errors that callers may catch.

Every message says what was found (with values), why it matters, and what to do next.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class StmError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(StmError, ValueError):
    """An argument, an option or a recipe key cannot be used as given."""


class DataError(StmError, ValueError):
    """A row of the user's data is broken; names file, line, value and remedy."""


class ModelFolderError(StmError):
    """A model or retriever folder is missing, incomplete, or not what its manifest says."""


class IndexFolderError(StmError):
    """An index folder is missing, damaged, locked by another writer, or of a newer schema."""


class ArtifactMismatchError(StmError):
    """Two artefacts do not belong together, for instance an index and another model's vectors."""


class ProviderError(StmError):
    """The device or execution provider that was asked for is not the one that runs."""


class ExportParityError(StmError):
    """An exported graph does not give the model's vectors; carries the numbers."""


class TrainingError(StmError):
    """Training cannot go on: a non-finite loss, a batch without negatives, a model it cannot adapt."""


class MergeError(StmError, ValueError):
    """The members of a merge do not fit together: names, shapes, or non-finite values."""


class LLMError(StmError):
    """A language model could not be reached, refused, or never gave a usable answer."""


class MissingExtraError(StmError, ImportError):
    """An optional dependency is not installed; names the extra that brings it."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency or say which extra brings it.

    Args:
        module: Dotted name of the module.
        extra: Name of our extra, for instance ``"cpu"``.
        purpose: What it is needed for, as a noun phrase ("the FAISS index").

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the top-level package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != top:
            raise  # the package is there; something inside it is broken
        message = (
            f"{top!r} is not installed, and {purpose} needs it. Run: pip install 'stm-retriever[{extra}]'"
        )
        raise MissingExtraError(message) from error
