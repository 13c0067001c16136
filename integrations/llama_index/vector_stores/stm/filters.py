"""From LlamaIndex's metadata filters to ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from stm_retriever import ConfigError

Where = dict[str, Any]

_COMPARED = {
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_LISTED: dict[FilterOperator, Callable[[str, list[Any]], Where]] = {
    FilterOperator.IN: lambda key, values: {key: {"$in": values}},
    FilterOperator.NIN: lambda key, values: {key: {"$nin": values}},
    FilterOperator.ANY: lambda key, values: {key: {"$in": values}},
    FilterOperator.ALL: lambda key, values: {
        "$and": [{key: {"$exists": True}}, *({key: {"$eq": value}} for value in values)]
    },
}


def to_where(filters: MetadataFilters | None) -> Where | None:
    """Translate filters; None stays None.

    A list in metadata matches if one of its elements does, so that ``==`` and ``contains`` are the same on
    lists. ``text_match`` and ``text_match_insensitive`` have no counterpart and are errors.

    Raises:
        ConfigError: If an operator, a condition or a value cannot be translated; the message names it.
    """
    if filters is None or not filters.filters:
        return None
    parts = [
        to_where(part) or {} if isinstance(part, MetadataFilters) else _one(part) for part in filters.filters
    ]
    condition = filters.condition or FilterCondition.AND
    if condition == FilterCondition.AND:
        return {"$and": parts}
    if condition == FilterCondition.OR:
        return {"$or": parts}
    if condition == FilterCondition.NOT:  # none of them holds, as in LlamaIndex's own store
        return {"$not": {"$or": parts}}
    raise ConfigError(f"There is no counterpart of the condition {condition!r}. Take AND, OR or NOT.")


def all_of(*filters: Where | None) -> Where | None:
    """Join filters by and; None where there is none."""
    given = [where for where in filters if where]
    if not given:
        return None
    return given[0] if len(given) == 1 else {"$and": given}


def ids_where(
    node_ids: Sequence[str] | None = None, ref_doc_ids: Sequence[str] | None = None
) -> Where | None:
    """Keep nodes of these ids, or of these documents; None keeps all."""
    by_node = None if node_ids is None else {"$id": {"$in": list(node_ids)}}
    by_document = None if ref_doc_ids is None else {"$parent": {"$in": list(ref_doc_ids)}}
    return all_of(by_node, by_document)


def _one(part: MetadataFilter) -> Where:
    key, value, operator = part.key, part.value, part.operator
    if operator == FilterOperator.IS_EMPTY:
        return {"$or": [{key: {"$exists": False}}, {key: {"$in": [None, ""]}}]}
    if operator in _LISTED:
        if not isinstance(value, list):
            raise ConfigError(
                f"The filter {key!r} {operator.value} {value!r:.60} needs a list of values, not a "
                f"{type(value).__name__}. Pass [value]."
            )
        return _LISTED[operator](key, value)
    if isinstance(value, list) or value is None:
        raise ConfigError(
            f"The filter {key!r} {operator.value} {value!r:.60} compares with one number or text, not with a "
            f"{type(value).__name__}. Take the operator in, nin, any or all for lists, is_empty for nothing."
        )
    if operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
        return {key: {"$eq": value}}
    if operator in _COMPARED:
        return {key: {_COMPARED[operator]: value}}
    raise ConfigError(
        f"The filter operator {operator.value!r} (on {key!r}) has no counterpart in an index folder. For "
        "words in texts search with VectorStoreQueryMode.SPARSE; for exact values take == or in."
    )
