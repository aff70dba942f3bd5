"""Payloads as Chroma keeps them, which is flat: metadata of strings, numbers and booleans, and a document.

The user's own metadata keys stay as they are, and the text is Chroma's document, so that LangChain and people
read and filter the points as usual. Our keys carry the prefix ``merger:``. What Chroma cannot hold (lists,
mappings, null, integers past 64 bits, keys that it reserves) or gives back a little changed (floats of many
digits) is kept as JSON under ``merger:json:``. For every string, integer and boolean of the user's in there,
a mark ``merger:has:<path>:<value>`` makes it findable; for every string in a list of ours,
``merger:in:<key>:<value>``. No payload key of ours has a colon, so none of these can meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.backend import Payload, Where
from merger_plugins.stores.records import METADATA, TEXT

PREFIX = "merger:"
NO_VECTOR = f"{PREFIX}has-no-vector"
"""Marks a point that stands at a place of its own, because Chroma keeps no point without a vector."""

_JSON = f"{PREFIX}json:"
_HAS = f"{PREFIX}has:"
_IN = f"{PREFIX}in:"
_RESERVED = ("$", "#", "chroma:", PREFIX)
"""Keys that Chroma refuses or drops when they begin so, and ours."""

_DOCUMENTS_AT_ONCE = 5_000
"""SQLite takes 32,766 values in one statement."""

_MEMBERS_AT_ONCE = 200
"""Of conditions joined by "or", each one level deeper, it takes 1,000."""

Flat = dict[str, str | int | float | bool | None]
Condition = dict[str, Any]


def flattened(payload: Payload) -> tuple[Flat, str | None]:
    """The metadata and the document that hold a payload."""
    flat: Flat = {}
    text: str | None = None
    rest: Payload = {}
    for key, value in payload.items():
        if key == TEXT and isinstance(value, str) and value:
            text = value
            continue
        if key == METADATA and isinstance(value, Mapping):
            flat |= _user(value)
            continue
        if key != TEXT and ":" not in key and _is_scalar(value):
            flat[PREFIX + key] = value
            if _is_kept(value):
                continue
        rest[key] = value
        if isinstance(value, list):
            flat |= {f"{_IN}{key}:{item}": True for item in value if isinstance(item, str)}
    if rest:
        flat[_JSON + "payload"] = json.dumps(rest)
    return flat, text


def _user(metadata: Mapping[str, Any]) -> Flat:
    flat: Flat = {key: value for key, value in metadata.items() if _is_plain(key) and _is_scalar(value)}
    rest = {key: value for key, value in metadata.items() if key not in flat or not _is_kept(value)}
    if rest or not metadata:
        flat[_JSON + METADATA] = json.dumps(rest)
        flat |= {_mark(path, value): True for path, value in _leaves(rest)}
    return flat


def restored(flat: Mapping[str, Any] | None, text: str | None) -> Payload:
    """The payload that a stored metadata and document hold; of points that others wrote too.

    Raises:
        StoreError: its JSON is damaged.
    """
    payload: Payload = {}
    metadata: Payload = {}
    for key, value in (flat or {}).items():
        if not key.startswith(PREFIX):
            metadata[key] = value
        elif ":" not in key[len(PREFIX) :] and key != NO_VECTOR:
            payload[key[len(PREFIX) :]] = value
    try:
        more = json.loads((flat or {}).get(_JSON + "payload", "{}"))
        stored = (flat or {}).get(_JSON + METADATA)
        if metadata or stored is not None:
            payload[METADATA] = metadata | json.loads(stored or "{}")
        if text:
            payload[TEXT] = text
        return {**payload, **more}
    except (TypeError, ValueError) as error:
        raise StoreError(f"A stored payload is damaged ({error}). Ingest the document again.") from error


def key_of(path: str) -> str:
    """The metadata key that holds the value at a path of the payload."""
    head, _, rest = path.partition(".")
    return rest if head == METADATA and rest else PREFIX + path


def conditions(where: Where, document: str = "document_id") -> list[Condition | None]:
    """Chroma's ``where`` for each request that is needed; a point may answer several.

    Args:
        where: what is asked for.
        document: path of the document's id in the payload.

    Returns:
        [None] where everything matches, [] where nothing can.

    Raises:
        InputError: a filter that is neither a mapping of metadata key -> value nor Chroma's own.
    """
    must = [{key_of(key): {"$eq": value}} for key, value in where.match.items()]
    if where.filter is not None:
        if not isinstance(where.filter, Mapping):
            raise InputError(
                f"filter must be a mapping of metadata key -> value, or a where of Chroma's; a "
                f"{type(where.filter).__qualname__} arrived."
            )
        for key, value in where.filter.items():
            found = _condition(str(key), value)
            if found is None:
                return []
            must.append(found)
    requests = [must]
    if where.documents is not None:
        parts = _parts(where.documents, _DOCUMENTS_AT_ONCE)
        requests = [[*each, _of_documents(key_of(document), part)] for each in requests for part in parts]
    if where.members is not None:
        parts = _parts(where.members, _MEMBERS_AT_ONCE)
        requests = [[*each, _listing(part)] for each in requests for part in parts]
    return [_all(each) for each in requests]


def _parts(values: Sequence[str], size: int) -> list[list[str]]:
    once = list(dict.fromkeys(values))
    return [once[start : start + size] for start in range(0, len(once), size)]


def _of_documents(key: str, documents: list[str]) -> Condition:
    """Documents by their ids, which a collection that this package did not write may hold as numbers."""
    names = {key: {"$in": documents}}
    numbers = [int(name) for name in documents if name.isdecimal() and len(name) < 19]
    return {"$or": [names, {key: {"$in": numbers}}]} if numbers and not key.startswith(PREFIX) else names


def _listing(members: list[str]) -> Condition:
    found = _any([{f"{_IN}chunks:{member}": {"$eq": True}} for member in members])
    assert found is not None
    return found


def narrowed(where: Condition | None, condition: Condition) -> Condition | None:
    """A ``where`` and one condition more."""
    return _all([condition] if where is None else [where, condition])


def _condition(key: str, value: Any) -> Condition | None:
    """The condition for one entry of a filter; None where no point can meet it."""
    if key in ("$and", "$or"):
        return {key: value}
    if isinstance(value, Mapping) and value and all(str(operator).startswith("$") for operator in value):
        return _all([{key: {operator: operand}} for operator, operand in value.items()])
    if isinstance(value, bool | int | float | str):
        return _any(list(_equal(key, [value])))
    if isinstance(value, list | tuple | set | frozenset):
        return _any(list(_equal(key, list(value))))
    raise InputError(
        f"The filter for {key!r} is a {type(value).__qualname__}; pass a string, number, boolean or list of "
        "them, or one of Chroma's operators."
    )


def _equal(key: str, values: Sequence[Any]) -> Iterator[Condition]:
    """Conditions of which one must hold for a key to have one of these values."""
    for kind in (bool, int, float, str):
        alike = [value for value in values if type(value) is kind]
        if alike and _is_plain(key):  # the values of a list must be of one type
            yield {key: {"$in": alike}} if len(alike) > 1 else {key: {"$eq": alike[0]}}
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise InputError(
                f"The filter for {key!r} holds a {type(value).__qualname__}; pass strings, numbers or "
                "booleans."
            )
        if not isinstance(value, float) or value.is_integer():
            yield {_mark(key, int(value) if isinstance(value, float) else value): {"$eq": True}}


def _any(options: list[Condition]) -> Condition | None:
    if len(options) < 2:
        return options[0] if options else None
    return {"$or": options}


def _all(must: list[Condition]) -> Condition | None:
    if len(must) < 2:
        return must[0] if must else None
    return {"$and": must}


def _leaves(metadata: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str | int | bool]]:
    """(path, value) of every string, integer and boolean; keys of mappings inside are joined by dots."""
    for key, value in metadata.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield from _leaves(item, f"{above}{key}.")
            elif isinstance(item, bool | int | str):
                yield f"{above}{key}", item


def _mark(path: str, value: str | int | bool) -> str:
    return f"{_HAS}{path}:{json.dumps(value)}"


def _is_plain(key: str) -> bool:
    return bool(key) and not key.startswith(_RESERVED)


def _is_kept(value: Any) -> bool:
    """Whether Chroma gives a scalar back as it was: of floats, only where its decimal digits are few.

    Its parser multiplies the digits by a power of ten, which is exact up to 2^53 and 10^22.
    """
    if not isinstance(value, float):
        return True
    number = Decimal(repr(value)).as_tuple()
    return int("".join(map(str, number.digits))) <= 2**53 and abs(int(number.exponent)) <= 22


def _is_scalar(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return isinstance(value, bool | float | str)
