"""Between our hits and documents and LlamaIndex's nodes."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    RelatedNodeType,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from stm_retriever import DataError, Document, Hit

_CONTENT = "_node_content"


def to_node(hit: Hit) -> NodeWithScore:
    """Turn a hit into a node with its score; see :func:`stored_node`."""
    return NodeWithScore(node=stored_node(hit), score=hit.score)


def stored_node(document: Document | Hit) -> BaseNode:
    """Turn a document into a node.

    What LlamaIndex stored comes back as the node that it was. Anything else becomes a text node with the
    document's id, text and metadata; a part of a longer document has the parent as its source, so that
    ``node.ref_doc_id`` is the parent's id, and its place in ``start_char_idx`` and ``end_char_idx``.
    """
    if isinstance(document.metadata.get(_CONTENT), str):
        try:
            return metadata_dict_to_node(dict(document.metadata), text=document.text)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The node stored as {document.id!r} cannot be made again ({error}): its {_CONTENT} is not "
                "what LlamaIndex writes. Add the node anew."
            ) from error
    relationships: dict[NodeRelationship, RelatedNodeType] = {}
    if document.parent_id is not None:
        relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document.parent_id)
    return TextNode(
        id_=document.id,
        text=document.text,
        metadata=dict(document.metadata),
        relationships=relationships,
        start_char_idx=document.start,
        end_char_idx=document.end,
    )


def to_document(node: BaseNode) -> Document:
    """Turn a node into a document that :func:`stored_node` turns into the same node again.

    Its metadata can be filtered by; empty lists are left out of it there, so that ``is_empty`` finds them.
    """
    metadata: dict[str, Any] = node_to_metadata_dict(node, remove_text=True)
    return Document(
        id=node.node_id,
        text=node.get_content(metadata_mode=MetadataMode.NONE),
        metadata={key: value for key, value in metadata.items() if value != []},
        parent_id=node.ref_doc_id,
        start=_offset(node, "start_char_idx"),
        end=_offset(node, "end_char_idx"),
    )


def _offset(node: BaseNode, name: str) -> int | None:
    value = getattr(node, name, None)
    return value if isinstance(value, int) and value >= 0 else None
