"""From our hits to LangChain's documents."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document

from stm_retriever import Hit


def to_document(hit: Hit) -> Document:
    """Turn a hit into a LangChain document.

    ``metadata`` is the document's own, plus ``score`` (cosine similarity, higher is better) and, where they
    are known, ``parent_id``, ``start`` and ``end``. A value that the document itself has under one of these
    names is not lost: it is found under the name with ``document_`` before it.
    """
    place = {"parent_id": hit.parent_id, "start": hit.start, "end": hit.end}
    added = {"score": hit.score, **{key: value for key, value in place.items() if value is not None}}
    metadata: dict[str, Any] = dict(hit.metadata)
    for key in added.keys() & hit.metadata.keys():
        metadata[_free_name(key, metadata)] = metadata.pop(key)
    return Document(id=hit.id, page_content=hit.text, metadata={**metadata, **added})


def _free_name(key: str, taken: dict[str, Any]) -> str:
    name = f"document_{key}"
    while name in taken:
        name = f"document_{name}"
    return name
