"""Documents as rows: what is allowed in one, and the way into SQLite and back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from stm_retriever.errors import ConfigError, DataError, IndexFolderError
from stm_retriever.tokenization import check_text
from stm_retriever.types import Document

Row = tuple[str, str, str, str | None, int | None, int | None]
"""id, text, metadata as JSON, parent_id, start, end."""

HASH_SIZE = 16
_decode = json.JSONDecoder().raw_decode  # json.loads without looking for spaces around, which we do not write
_LARGEST_BITS = 10_000  # Python's int() refuses texts of more than 4300 digits
_DEEPEST = 100  # JSON's reader and ours recurse; nobody nests metadata this deep on purpose


def check_documents(documents: Iterable[Document]) -> list[Document]:
    """Return the documents as a list, once each is known to be storable.

    Raises:
        ConfigError: If an item is no :class:`Document`.
        DataError: If an id is empty or comes twice, a text is empty, or metadata is not JSON.
    """
    checked: list[Document] = []
    seen: dict[str, int] = {}
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            raise ConfigError(
                f"Item {position} is a {type(document).__name__}, not a Document. "
                "Pass Document(id=..., text=..., metadata={...})."
            )
        _check_document(document, position)
        if document.id in seen:
            raise DataError(
                f"The id {document.id!r} comes twice in one call, at positions {seen[document.id]} and "
                f"{position}, so one of the two would be lost. Nothing was written. Give each its own id."
            )
        seen[document.id] = position
        checked.append(document)
    return checked


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list of distinct strings, in order.

    Raises:
        ConfigError: If a bare string is passed for a list, or an id is no string.
    """
    if isinstance(ids, str):
        raise ConfigError(f"Got the single string {ids[:60]!r} where a list of ids is expected. Pass [id].")
    checked = list(ids)
    for given in checked:
        if not isinstance(given, str):
            raise ConfigError(
                f"The id {given!r:.60} is a {type(given).__name__}; ids are strings. Pass str(id)."
            )
    return checked


def row_of(document: Document) -> Row:
    """Turn a checked document into a row."""
    metadata = json.dumps(dict(document.metadata), allow_nan=False)
    return document.id, document.text, metadata, document.parent_id, document.start, document.end


def hash_of(row: Row) -> bytes:
    """Hash all fields of a row, 16 bytes: the same content always has the same one."""
    name, text, metadata, parent_id, start, end = row
    # The lengths keep fields apart whatever they contain.
    head = f"{len(name)},{len(text)},{len(metadata)},{parent_id is None},{start},{end}:"
    content = f"{head}{name}{text}{metadata}{parent_id or ''}".encode()
    return hashlib.blake2b(content, digest_size=HASH_SIZE).digest()


def document_of(row: Row, stored_hash: bytes) -> Document:
    """Turn a row into a document.

    Raises:
        IndexFolderError: If the row is not what was written: a bit has flipped in the file.
    """
    name, text, metadata, parent_id, start, end = row
    try:
        if hash_of(row) != stored_hash:
            raise ValueError("its content does not have the hash that was stored with it")
        values = _decode(metadata)[0] if metadata != "{}" else {}
        if type(values) is not dict or not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError("its fields have other types than were written")
    except (TypeError, ValueError, RecursionError) as error:
        raise IndexFolderError(
            f"The document {name!r:.60} in the index is damaged: {error}. Restore the folder from a "
            "backup, or index the documents again."
        ) from error
    return Document(name, text, values, parent_id, start, end)


def _check_document(document: Document, position: int) -> None:
    what = f"document {document.id!r} (position {position})"
    check_text(document.id, f"The id of the document at position {position}")
    if not document.id:
        raise DataError(f"The document at position {position} has an empty id, so it could never be found.")
    check_text(document.text, f"The text of {what}")
    if not document.text.strip():
        raise DataError(
            f"The text of {what} is empty ({document.text!r:.20}), so it has no meaningful vector. Nothing "
            "was written. Leave the document out."
        )
    if document.parent_id is not None:
        check_text(document.parent_id, f"parent_id of {what}")
    _check_offsets(document, what)
    if not isinstance(document.metadata, Mapping):
        raise DataError(f"metadata of {what} is a {type(document.metadata).__name__}. Pass a dict.")
    _check_json(document.metadata, f"metadata of {what}")


def _check_offsets(document: Document, what: str) -> None:
    for name, value in (("start", document.start), ("end", document.end)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise DataError(f"{name}={value!r} of {what} is no character offset. Pass an int >= 0, or None.")
    if document.start is not None and document.end is not None and document.end < document.start:
        raise DataError(
            f"{what} ends at {document.end}, before its start {document.start}. Check the offsets."
        )


def _check_json(value: Any, where: str, depth: int = 0) -> None:
    """JSON would turn keys into strings, and write NaN that no other reader takes; both silently."""
    if depth > _DEEPEST:
        raise DataError(f"{where:.60}... is nested deeper than {_DEEPEST} levels. Store it flatter.")
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, (int, float)):
        _check_number(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise DataError(
                    f"{where} has the key {key!r}, a {type(key).__name__}; JSON keys are strings. Pass "
                    "str(key)."
                )
            _check_json(inner, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _check_json(inner, f"{where}[{number}]", depth + 1)
    else:
        raise DataError(
            f"{where} is a {type(value).__name__} ({value!r:.60}), which JSON cannot hold. "
            "Store a string, number, bool, None, list or dict; for a date its isoformat()."
        )


def _check_number(value: int | float, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} is {value}, which JSON cannot hold. Leave it out or store None.")
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise DataError(f"{where} has more than 3000 digits, which Python does not read back. Store a text.")
