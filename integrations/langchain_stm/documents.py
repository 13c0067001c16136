"""Between our documents and LangChain's."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from stm_retriever import ConfigError, Hit
from stm_retriever import Document as STMDocument


def to_document(hit: Hit, *, with_score: bool = True) -> Document:
    """Turn a hit into a LangChain document.

    ``metadata`` is the document's own, plus ``score`` (higher is better; see ``Hit``) and, where they are
    known, ``parent_id``, ``start`` and ``end``. A value that the document itself has under one of these
    names is not lost: it is found under the name with ``document_`` before it.

    Args:
        hit: The hit.
        with_score: Whether to put the score there.
    """
    place = {"parent_id": hit.parent_id, "start": hit.start, "end": hit.end}
    added: dict[str, Any] = {"score": hit.score} if with_score else {}
    return _document(hit, {**added, **{key: value for key, value in place.items() if value is not None}})


def stored_document(document: STMDocument) -> Document:
    """Turn a stored document into LangChain's, as :func:`to_document` does without the score."""
    place = {"parent_id": document.parent_id, "start": document.start, "end": document.end}
    return _document(document, {key: value for key, value in place.items() if value is not None})


def from_texts(
    texts: Iterable[str],
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    ids: Sequence[str | None] | None,
) -> list[STMDocument]:
    """Make documents of texts; those without an id get a random one.

    Raises:
        ConfigError: If there are not as many metadatas or ids as texts.
    """
    listed = list(texts)
    for name, given in (("metadatas", metadatas), ("ids", ids)):
        if given is not None and len(given) != len(listed):
            raise ConfigError(
                f"Got {len(listed)} texts and {len(given)} {name}, so it is not known which belongs to "
                "which. Pass one per text, or None."
            )
    return [
        STMDocument(
            id=(ids[place] if ids is not None else None) or uuid.uuid4().hex,
            text=text,
            metadata=dict((metadatas[place] if metadatas is not None else None) or {}),
        )
        for place, text in enumerate(listed)
    ]


def _document(source: Hit | STMDocument, added: dict[str, Any]) -> Document:
    metadata: dict[str, Any] = dict(source.metadata)
    for key in added.keys() & source.metadata.keys():
        metadata[_free_name(key, metadata)] = metadata.pop(key)
    return Document(id=source.id, page_content=source.text, metadata={**metadata, **added})


def _free_name(key: str, taken: dict[str, Any]) -> str:
    name = f"document_{key}"
    while name in taken:
        name = f"document_{name}"
    return name
