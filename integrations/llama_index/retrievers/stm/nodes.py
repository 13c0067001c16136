"""From our hits to LlamaIndex's nodes."""

from __future__ import annotations

from llama_index.core.schema import (
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    RelatedNodeType,
    TextNode,
)

from stm_retriever import Hit


def to_node(hit: Hit) -> NodeWithScore:
    """Turn a hit into a text node with its score.

    Id, text and metadata are the document's. A part of a longer document has the parent as its source, so
    that ``node.ref_doc_id`` is the parent's id, and its place in ``start_char_idx`` and ``end_char_idx``.
    """
    relationships: dict[NodeRelationship, RelatedNodeType] = {}
    if hit.parent_id is not None:
        relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=hit.parent_id)
    node = TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=hit.metadata,
        relationships=relationships,
        start_char_idx=hit.start,
        end_char_idx=hit.end,
    )
    return NodeWithScore(node=node, score=hit.score)
