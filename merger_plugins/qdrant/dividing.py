"""The ids of a collection, divided among several readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

Edge = int | str | None
"""An id where a span begins or ends; None for the first one, or for the end of all."""

_NUMBERS = 2**64
_UUIDS = 2**128


def id_spans(at: Callable[[Edge], Any], parts: int) -> list[tuple[Edge, Edge]]:
    """Spans (start, stop) that together hold every id once, UUIDs being after numbers.

    Args:
        at: the first id that is not before this one; None where there is none.
        parts: how many spans of each kind of id.
    """
    first = at(None)
    edges: list[Edge] = [None]
    if isinstance(first, int):
        last = _last_number(at, first)
        step = max((last + 1 - first) // parts, 1)
        edges += list(range(first + step, last + 1, step))[: parts - 1]
        edges.append(_uuid(0))
    edges += [_uuid(part * _UUIDS // parts) for part in range(1, parts)]
    return list(zip(edges, [*edges[1:], None], strict=True))


def id_key(point_id: Edge) -> tuple[bool, int]:
    """How ids sort, those that were read back as text included."""
    if isinstance(point_id, int):
        return False, point_id
    assert point_id is not None
    return (False, int(point_id)) if point_id.isdecimal() else (True, UUID(point_id).int)


def _last_number(at: Callable[[Edge], Any], low: int) -> int:
    """The largest id that is a number, found by halving."""
    high = _NUMBERS
    while high - low > 1:  # there is a number from `low` on, and none from `high` on
        middle = (low + high) // 2
        found = at(middle)
        if isinstance(found, int):
            low = max(middle, found)
        else:
            high = middle
    return low


def _uuid(number: int) -> str:
    return str(UUID(int=number))
