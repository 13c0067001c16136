"""Read the ``index.pkl`` of LangChain's FAISS store without running what is in it.

A pickle is a program. The one that LangChain writes needs three classes and a set; here those names stand for
inert objects of ours, every other name is refused, and so nothing that the file brings along is ever imported
or called. Langchain-community itself need not be installed.
"""

from __future__ import annotations

import builtins
import io
import pickle  # only its unpickling machine is used, and every name in a file is looked up below
from pathlib import Path
from typing import Any

from stm_retriever import DataError


class _Inert:
    """Takes whatever state a pickle gives it and does nothing with it."""

    def __init__(self) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        """A field, of a plain object or of a pydantic one."""
        state = getattr(self, "state", None)
        if isinstance(state, dict) and isinstance(state.get("__dict__"), dict):
            state = state["__dict__"]
        return state.get(name) if isinstance(state, dict) else None


class _Docstore(_Inert):
    pass


class _Document(_Inert):
    pass


_KNOWN: dict[tuple[str, str], type] = {
    ("langchain_community.docstore.in_memory", "InMemoryDocstore"): _Docstore,
    ("langchain.docstore.in_memory", "InMemoryDocstore"): _Docstore,
    ("langchain_core.documents.base", "Document"): _Document,
    ("langchain.schema.document", "Document"): _Document,
    ("langchain.schema", "Document"): _Document,
    ("langchain.docstore.document", "Document"): _Document,
    ("builtins", "set"): builtins.set,
    ("__builtin__", "set"): builtins.set,
}


class _Reader(pickle._Unpickler):
    """Python's own machine; the one in C reserves gigabytes for a place number that a damaged file names."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise DataError(
                f"it names {module}.{name}, which a docstore of LangChain's FAISS does not need; it was not "
                "imported, and nothing was run"
            )
        return known


def read_docstore(path: Path) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[int, str]]:
    """Read a docstore.

    Args:
        path: The ``.pkl`` file.

    Returns:
        Text and metadata per document id, and the document id per row of the vector index.

    Raises:
        DataError: If the file is missing, is no pickle, names anything but a docstore's classes (metadata
            values of other classes too), or holds something else than a docstore.
    """
    try:
        content = _Reader(io.BytesIO(path.read_bytes())).load()
    except DataError as error:
        raise DataError(
            f"{str(path)!r} is not read: {error}. If the file is your own, store such metadata values as "
            "text in LangChain first; if it is not, do not load it anywhere."
        ) from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. Check the folder and index_name.") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(
            f"{str(path)!r} is no pickle that LangChain's FAISS wrote: {type(error).__name__}: {error}. "
            "Save the store anew: store.save_local(folder)"
        ) from error
    return _checked(path, content)


def _checked(path: Path, content: Any) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[int, str]]:
    if not (isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], _Docstore)):
        raise _no_docstore(path, f"a {type(content).__name__}")
    stored, rows = content[0].get("_dict"), content[1]
    if not isinstance(stored, dict) or not isinstance(rows, dict):
        raise _no_docstore(path, "a docstore without documents or rows")
    documents = {}
    for name, document in stored.items():
        text = document.get("page_content") if isinstance(document, _Document) else None
        metadata = document.get("metadata") if isinstance(document, _Document) else None
        if not isinstance(name, str) or not isinstance(text, str) or not isinstance(metadata or {}, dict):
            raise _no_docstore(path, f"no document under {name!r:.60}")
        documents[name] = (text, metadata or {})
    if not all(type(row) is int and isinstance(name, str) for row, name in rows.items()):
        raise _no_docstore(path, "rows that are no numbers")
    return documents, rows


def _no_docstore(path: Path, what: str) -> DataError:
    return DataError(
        f"{str(path)!r} holds {what}, not the docstore of LangChain's FAISS store. Check the folder and "
        "index_name."
    )
