"""Recognising how the points of a collection are to be read, from a sample of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores.backend import Payload, VectorForm
from merger_plugins.stores.foreign import ContextualPlace, Reading, found

NO_ORDER = "none"
"""What to pass for the order where no field tells it."""

GROUPS = (
    *("ref_doc_id", "document_id", "doc_id", "documentId", "docId", "source", "source_id"),
    *("file_path", "filepath", "path", "file_name", "filename", "url", "uri"),
)
"""Names of fields that are taken for a document's, in this order of preference."""

POSITIONS = (
    *("position", "chunk_index", "chunkIndex", "chunk_idx", "chunk_number", "chunk_no", "chunk_num"),
    *("chunk_seq", "seq_num", "sequence", "seq", "ordinal", "index", "idx", "order"),
)
"""Names of fields that are taken for a chunk's place in its document."""

OFFSETS = ("start_index", "start_char_idx", "start_offset", "offset", "start")
"""Names of fields that are taken for where a chunk starts, which may be counted from the start of a page."""

PAGES = ("page", "page_number", "page_num", "page_label")

TEXTS = ("page_content", "text", "content", "document", "chunk_text", "chunk", "body")

_JSON_KEY = "_node_content"
_OWN_KEYS = {"schema", "level", "norm", "mass", "document_id"}
_LISTED = 40


@dataclass(frozen=True)
class Wanted:
    """What the caller says of a collection; None for what is to be recognised.

    Attributes:
        group_by: as `Reading`, like all that follow.
        order_by: one key or several; ``"none"`` for the order of ids.
        text: as `Reading`.
        vector: as `Reading`.
        contextual: as `Reading`.
        contextual_vector: as `Reading`.
    """

    group_by: str | None = None
    order_by: str | Sequence[str] | None = None
    text: str | None = None
    vector: str | None = None
    contextual: ContextualPlace | None = None
    contextual_vector: str | None = None

    @property
    def order(self) -> tuple[str, ...] | None:
        """The keys of the order; None where it is to be recognised."""
        if self.order_by is None:
            return None
        keys = (self.order_by,) if isinstance(self.order_by, str) else tuple(self.order_by)
        return () if keys == (NO_ORDER,) else keys

    def agrees(self, reading: Reading) -> bool:
        """Whether a reading is what the caller says."""
        said = [
            (self.group_by, reading.group_by),
            (self.order, reading.order_by),
            (self.text, reading.text),
            (self.vector, reading.vector),
            (self.contextual, reading.contextual),
            (self.contextual_vector, reading.contextual_vector),
        ]
        return all(wanted is None or wanted == stored for wanted, stored in said)


def recognised(sample: Sequence[Payload], vectors: Mapping[str, VectorForm], wanted: Wanted) -> Reading:
    """How to read a collection.

    Args:
        sample: payloads of some of its points, at least one.
        vectors: what `Backend.vectors` says.
        wanted: what the caller says.

    Raises:
        InputError: something that the caller has to say, or a field or vector that there is not.
        StoreError: vectors compared in a way that ranks otherwise than cosines, or points of this package.
    """
    if all(payload.keys() >= _OWN_KEYS for payload in sample):
        raise StoreError(
            "The points of this collection were written by this package, which keeps merged vectors itself, "
            "but its companion collection is gone. Ingest the documents again."
        )
    fields = _fields(sample)
    metadata = "metadata" if _share(sample, "metadata", dict) > 0 else None
    text = wanted.text or _text(sample)
    if _share(sample, _JSON_KEY, str) > 0.5:
        layout, metadata = "LlamaIndex", None
    elif metadata and _share(sample, f"{metadata}.{_JSON_KEY}", str) > 0.5:
        layout = "LlamaIndex"  # in Chroma, where all metadata is together
    else:
        layout = "LangChain" if metadata and text == "page_content" else "flat"
    vector = _vector(vectors, wanted.vector)
    group_by = wanted.group_by or _group(sample, metadata, fields)
    order_by = wanted.order if wanted.order is not None else _order(sample, metadata, group_by, fields)
    for option, path in [("group_by", group_by), *(("order_by", path) for path in order_by)]:
        if all(found(payload, path) is None for payload in sample):
            raise InputError(
                f"{option} names {path!r}, and none of {len(sample):,} points looked at has that field. "
                f"{_listed(fields)}"
            )
    if _JSON_KEY in group_by.split("."):
        raise InputError(
            f"group_by is {group_by!r}, and the database cannot look into the JSON text of {_JSON_KEY!r}. "
            f"Name another field. {_listed(fields)}"
        )
    place = wanted.contextual or "none"
    name = _contextual_vector(vectors, vector, wanted.contextual_vector) if place == "named" else None
    distance = vectors[vector].distance
    return Reading(layout, group_by, order_by, text, metadata, vector, place, name, distance)


def _vector(vectors: Mapping[str, VectorForm], wanted: str | None) -> str:
    names = sorted(vectors)
    if not vectors:
        raise StoreError(
            "The points of this collection have no dense vector, so that there is nothing to merge."
        )
    if wanted is not None and wanted not in vectors:
        raise InputError(f"vector is {wanted!r}, and the collection has {names}.")
    cosine = [name for name in names if vectors[name].distance is None]
    if wanted is None and "" not in vectors and len(names) > 1 and len(cosine) != 1:
        raise InputError(
            f"The points have several vectors: {names}. Say with vector= (--vector) which is the chunk's."
        )
    chosen = wanted if wanted is not None else "" if "" in vectors else (cosine or names)[0]
    if not vectors[chosen].as_cosine:
        named = f" named {chosen!r}" if chosen else ""
        raise StoreError(
            f"The chunk vectors{named} are compared by {vectors[chosen].distance}, and merged vectors are "
            "compared by cosine. Copy the collection into one with cosine distance first."
        )
    return chosen


def _contextual_vector(vectors: Mapping[str, VectorForm], raw: str, wanted: str | None) -> str:
    name = wanted or "contextual"
    if name == raw or name not in vectors:
        raise InputError(
            f"contextual='named' needs a vector named {name!r} beside the chunk vector {raw!r}, and the "
            f"collection has {sorted(vectors)}. Name another with contextual_vector=, or let contextual "
            "vectors go into the companion collection: contextual='companion'."
        )
    if vectors[name] != vectors[raw]:
        raise InputError(
            f"The vector {name!r} has dimension {vectors[name].dimension} and distance "
            f"{vectors[name].distance or 'cosine'}; it must be {vectors[raw].dimension} and "
            f"{vectors[raw].distance or 'cosine'}, as the chunk vectors are."
        )
    return name


def _text(sample: Sequence[Payload]) -> str | None:
    names = [f"{_JSON_KEY}.text"] if _share(sample, _JSON_KEY, str) > 0.5 else TEXTS
    return next((name for name in names if _share(sample, name, str) > 0.5), None)


def _group(sample: Sequence[Payload], metadata: str | None, fields: Counter[str]) -> str:
    paths = (path for path in _paths(GROUPS, metadata) if path in fields)
    chosen = next((path for path in paths if _share(sample, path, str | int) > 0.5), None)
    if chosen is None:
        raise InputError(
            "No field of the points is known to name their document. Say it with group_by= (--group-by). "
            + _listed(fields)
        )
    return chosen


def _order(
    sample: Sequence[Payload], metadata: str | None, group_by: str, fields: Counter[str]
) -> tuple[str, ...]:
    def numbered(names: Sequence[str]) -> str | None:
        paths = (path for path in _paths(names, metadata) if path in fields and path != group_by)
        return next((path for path in paths if _numbers(sample, path)), None)

    position, page = numbered(POSITIONS), numbered(PAGES)
    if position is not None:
        return (position,)
    offset = numbered([*OFFSETS, f"{_JSON_KEY}.start_char_idx"])
    order = tuple(path for path in (page, offset) if path is not None)
    if not order:
        raise InputError(
            "No field of the points is known to tell the order of a document's chunks. Say it with order_by= "
            "(--order-by, several times for a page and an offset in it), or order_by='none' for the order of "
            "their ids: root vectors hardly depend on it, but sections then gather chunks that are no "
            f"neighbours. {_listed(fields)}"
        )
    return order


def _paths(names: Sequence[str], metadata: str | None) -> Iterator[str]:
    for name in names:
        if metadata is not None:
            yield f"{metadata}.{name}"
        yield name


def _share(sample: Sequence[Payload], path: str, kind: object) -> float:
    return sum(isinstance(found(payload, path), kind) for payload in sample) / len(sample)  # type: ignore[arg-type]


def _numbers(sample: Sequence[Payload], path: str) -> bool:
    """Whether most points have a number there, and none has anything else."""
    values = [value for payload in sample if (value := found(payload, path)) is not None]
    return 2 * len(values) > len(sample) and all(map(_is_number, values))


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value.isdecimal()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fields(sample: Sequence[Payload]) -> Counter[str]:
    """The paths of plain values, and how many of the points have each."""

    def paths(payload: Mapping[str, object], before: str) -> Iterator[str]:
        for key, value in payload.items():
            if key == _JSON_KEY and isinstance(value, str):
                try:
                    value = json.loads(value)
                except ValueError:
                    continue
            if isinstance(value, Mapping):
                yield from paths(value, f"{before}{key}.")
            elif isinstance(value, str | int | float):
                yield f"{before}{key}"

    return Counter(path for payload in sample for path in paths(payload, ""))


def _listed(fields: Counter[str]) -> str:
    if not fields:
        return "The points have no fields at all."
    named = [name for name, _ in fields.most_common(_LISTED)]
    more = f" and {len(fields) - _LISTED} more" if len(fields) > _LISTED else ""
    return f"Their fields: {', '.join(sorted(named))}{more}."
