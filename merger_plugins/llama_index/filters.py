"""LlamaIndex's metadata filters, as the ingestion hooks take them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from merger_plugins.errors import InputError
from merger_plugins.llama_index.calls import Steps, field_of_store
from merger_plugins.stores import MergedStore
from merger_plugins.stores.asynchronous import AsyncMergedStore

_CHROMA = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_RANGES = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def translated(filters: Any, store: MergedStore | AsyncMergedStore) -> Steps[Any]:
    """What `MergedStore.search` takes as ``filter=``.

    Args:
        filters: `MetadataFilters`; or a mapping, or the database's own filter, which stay as they are.
        store: the hook that will search.

    Raises:
        InputError: an operator or condition that the database has no form for.
    """
    if not isinstance(filters, MetadataFilters):
        return filters
    if not filters.filters:
        return None
    plain = _mapping(filters)
    if plain is not None:
        return plain
    database = _database(store)
    if database == "Qdrant":
        field = yield field_of_store(store)
        return _of_qdrant(filters, f"{field}." if field else "")
    if database == "Chroma":
        return _of_chroma(filters)
    raise InputError(
        f"{store!r} takes only filters by equality, joined by 'and'. Pass a mapping or the database's own."
    )


def _mapping(filters: MetadataFilters) -> dict[str, Any] | None:
    """Equalities that all hold, as every hook takes them; None for anything else."""
    found: dict[str, Any] = {}
    for condition in filters.filters:
        if not isinstance(condition, MetadataFilter) or condition.key in found:
            return None
        if condition.operator == FilterOperator.EQ and condition.value is not None:
            found[condition.key] = condition.value
        elif condition.operator == FilterOperator.IN and condition.value is not None:
            found[condition.key] = _listed(condition)
        else:
            return None
    joined = filters.condition in (None, FilterCondition.AND) or (
        len(found) == 1 and filters.condition == FilterCondition.OR
    )
    return found if joined else None


def _database(store: MergedStore | AsyncMergedStore) -> str | None:
    """Which adapter made it, of those that are imported; none is imported for the question."""
    for name, module in (("Qdrant", "merger_plugins.qdrant"), ("Chroma", "merger_plugins.chroma")):
        adapter = sys.modules.get(module)
        classes = tuple(getattr(adapter, f"{kind}{name}Store") for kind in ("", "Async")) if adapter else ()
        if isinstance(store, classes):
            return name
    return None


def _of_chroma(filters: MetadataFilters) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = []
    for condition in filters.filters:
        if isinstance(condition, MetadataFilters):
            if condition.filters:
                conditions.append(_of_chroma(condition))
            continue
        operator = _CHROMA.get(condition.operator)
        if operator is None or condition.value is None:
            raise _unsupported(condition, "Chroma", _CHROMA)
        several = condition.operator in (FilterOperator.IN, FilterOperator.NIN)
        value = _listed(condition) if several else condition.value
        conditions.append({condition.key: {operator: value}})
    if filters.condition == FilterCondition.NOT:
        raise InputError(
            "Chroma has no negation of whole conditions. Negate each one: != for ==, nin for in, <= for >."
        )
    joined = "$or" if filters.condition == FilterCondition.OR else "$and"
    return conditions[0] if len(conditions) == 1 else {joined: conditions}


def _of_qdrant(filters: MetadataFilters, inside: str) -> Any:
    from qdrant_client import models

    conditions = [
        _of_qdrant(condition, inside)
        if isinstance(condition, MetadataFilters)
        else _qdrant_condition(condition, inside)
        for condition in filters.filters
        if not isinstance(condition, MetadataFilters) or condition.filters
    ]
    if filters.condition == FilterCondition.OR:
        return models.Filter(should=conditions)
    if filters.condition == FilterCondition.NOT:
        return models.Filter(must_not=conditions)
    return models.Filter(must=conditions)


def _qdrant_condition(condition: MetadataFilter, inside: str) -> Any:
    from qdrant_client import models

    key, value, operator = inside + condition.key, condition.value, condition.operator
    match: Any
    if operator == FilterOperator.IS_EMPTY:
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
    if value is None:
        raise _unsupported(condition, "Qdrant", _QDRANT)
    if operator in _RANGES:
        bounds: Mapping[str, Any] = {_RANGES[operator]: value}
        return models.FieldCondition(key=key, range=models.Range(**bounds))
    if operator == FilterOperator.EQ and isinstance(value, float):
        return models.FieldCondition(key=key, range=models.Range(gte=value, lte=value))
    if operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
        match = models.MatchValue(value=value)  # type: ignore[arg-type]
    elif operator in (FilterOperator.IN, FilterOperator.ANY):
        match = models.MatchAny(any=_listed(condition))
    elif operator in (FilterOperator.NE, FilterOperator.NIN):
        left_out = [value] if operator == FilterOperator.NE else _listed(condition)
        others: dict[str, Any] = {"except": left_out}
        match = models.MatchExcept(**others)
    elif operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE):
        match = models.MatchText(text=str(value))
    elif operator == FilterOperator.ALL:
        each: list[Any] = [
            models.FieldCondition(key=key, match=models.MatchValue(value=one)) for one in _listed(condition)
        ]
        return models.Filter(must=each)
    else:
        raise _unsupported(condition, "Qdrant", _QDRANT)
    return models.FieldCondition(key=key, match=match)


_QDRANT = tuple(FilterOperator)


def _listed(condition: MetadataFilter) -> list[Any]:
    """The values of a condition over several, which LlamaIndex's stores also take as 'a,b'."""
    value = condition.value
    return list(value) if isinstance(value, list) else str(value).split(",")


def _unsupported(condition: MetadataFilter, database: str, known: Any) -> InputError:
    names = ", ".join(operator.value for operator in known)
    return InputError(
        f"The filter {condition.key!r} {condition.operator.value} {condition.value!r} has no form in "
        f"{database}, which knows {names}, each with a value."
    )
