"""Where a point must be, as Qdrant's filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from qdrant_client import models

from merger_plugins.errors import InputError
from merger_plugins.stores.backend import ChunkForm, Shelf, Where
from merger_plugins.stores.records import METADATA

OWN_FORM = ChunkForm()


def as_filter(where: Where, form: ChunkForm = OWN_FORM, shelf: Shelf = "merged") -> models.Filter | None:
    """None where every point will do."""
    must: list[Any] = [
        models.FieldCondition(key=key, match=models.MatchValue(value=value))
        for key, value in where.match.items()
    ]
    if where.documents is not None:
        must.append(_one_of((form if shelf == "chunks" else OWN_FORM).document, where.documents))
    if where.members is not None:
        must.append(models.FieldCondition(key="chunks", match=models.MatchAny(any=list(where.members))))
    if isinstance(where.filter, models.Filter):
        moved = shelf == "merged" and form.metadata != METADATA
        must.append(_moved(where.filter, form.metadata) if moved else where.filter)
    elif isinstance(where.filter, Mapping):
        inside = form.metadata if shelf == "chunks" else METADATA
        must += [
            _condition(str(key), value, f"{inside}." if inside else "") for key, value in where.filter.items()
        ]
    elif where.filter is not None:
        raise InputError(
            f"filter must be a mapping of metadata key -> value, or a qdrant_client models.Filter; a "
            f"{type(where.filter).__qualname__} arrived."
        )
    return models.Filter(must=must) if must else None


def _one_of(key: str, documents: Sequence[str]) -> Any:
    """Documents by their ids, which a collection that this package did not write may hold as numbers."""
    names: Any = models.FieldCondition(key=key, match=models.MatchAny(any=list(documents)))
    numbers = [int(name) for name in documents if name.isdecimal() and len(name) < 19]
    if key == OWN_FORM.document or not numbers:
        return names
    return models.Filter(should=[names, models.FieldCondition(key=key, match=models.MatchAny(any=numbers))])


def _moved(condition: Any, inside: str | None) -> Any:
    """A filter over the payloads of chunk points, as one over those of merged points."""
    if isinstance(condition, list):
        return [_moved(one, inside) for one in condition]
    if not isinstance(condition, BaseModel):
        return condition
    changed: dict[str, Any] = {
        name: _moved(getattr(condition, name), inside)
        for name in type(condition).model_fields
        if isinstance(getattr(condition, name), BaseModel | list)
    }
    if isinstance(condition, models.FieldCondition | models.PayloadField):
        changed["key"] = f"{METADATA}.{condition.key.removeprefix(f'{inside}.') if inside else condition.key}"
    elif isinstance(condition, models.NestedCondition):
        key = condition.nested.key
        moved = f"{METADATA}.{key.removeprefix(f'{inside}.') if inside else key}"
        changed = {"nested": condition.nested.model_copy(update={"key": moved})}
    return condition.model_copy(update=changed)


def _condition(key: str, value: Any, inside: str) -> models.FieldCondition:
    path = inside + key
    if isinstance(value, bool | int | str):
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    if isinstance(value, float):
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    if isinstance(value, list | tuple | set | frozenset):
        return models.FieldCondition(key=path, match=models.MatchAny(any=list(value)))
    raise InputError(
        f"The filter for {key!r} is a {type(value).__qualname__}; pass a string, number, boolean or list "
        "of them."
    )


def above(version: int) -> list[models.Condition]:
    """Points of a larger version."""
    return [models.FieldCondition(key="version", range=models.Range(gt=version))]


def not_above(version: int) -> models.Filter:
    """Points of this version or a smaller one, or of none."""
    return models.Filter(must_not=above(version))
