"""Collections that this package did not write: what is known of one that was back-filled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self
from uuid import UUID, uuid5

from merger_plugins.errors import StoreError
from merger_plugins.stores.backend import ChunkForm, Payload
from merger_plugins.stores.records import PointIds

ContextualPlace = Literal["none", "companion", "named"]

CHUNKS = "chunks"
"""Payload key of a section, or of the root of a short document: the ids of its chunk points, in order."""

CHUNK = "chunk"
"""Payload key of a contextual point in the companion: the id of its chunk point."""

CONTEXTUAL_KIND = "contextual"

_NODE, _NODE_TYPE = "_node_content", "_node_type"
"""Where LlamaIndex keeps its node, as JSON text, and the name of its class."""

_NO_DOCUMENT = "None"
"""What LlamaIndex writes for the document of a node that has none."""


@dataclass(frozen=True)
class Reading:
    """How the points of a collection are read.

    Attributes:
        layout: what wrote it, for people to read: ``"LangChain"``, ``"LlamaIndex"`` or ``"flat"``.
        group_by: payload key of a point's document; dots lead into mappings, and into JSON text.
        order_by: payload keys of a point's place in its document, the first one deciding; none for the order
            of ids.
        text: payload key of the text; None where there is none.
        metadata: payload key of the mapping that filters look into; None where that is the payload itself.
        vector: name of the chunk vector; ``""`` for the one without a name.
        contextual: where contextual chunk vectors go, if anywhere.
        contextual_vector: name of the vector that takes them, where that is a named one.
        distance: how the database compares chunk vectors, in its own word, if they have unit length and it is
            not by cosine.
    """

    layout: str
    group_by: str
    order_by: tuple[str, ...]
    text: str | None
    metadata: str | None
    vector: str
    contextual: ContextualPlace = "none"
    contextual_vector: str | None = None
    distance: str | None = None

    @property
    def form(self) -> ChunkForm:
        """For the database."""
        return ChunkForm(
            self.group_by, self.text, self.metadata, self.vector, self.contextual_vector, self.distance
        )

    def document_of(self, payload: Payload) -> str | None:
        """The document of a point as it was read; None where the payload does not say."""
        return self.document_named(found(payload, self.group_by))

    def document_named(self, value: object) -> str | None:
        """The document that a value of the field `group_by` names; None where it names none."""
        if type(value) is int:
            return str(value)
        if type(value) is not str or value == "" or (value == _NO_DOCUMENT and self.layout == "LlamaIndex"):
            return None
        return value

    def text_of(self, payload: Payload) -> str | None:
        """The text of a point; None where there is none."""
        value = found(payload, self.text) if self.text else None
        return value if isinstance(value, str) else None

    def metadata_of(self, payload: Payload) -> Payload:
        """What a point's payload says beside its text."""
        if self.metadata:
            payload = found(payload, self.metadata)
            if type(payload) is not dict or _NODE not in payload:
                return payload if type(payload) is dict else {}
        left_out = (self.text, _NODE, _NODE_TYPE)
        return {key: value for key, value in payload.items() if key not in left_out}

    def stored_in(self, payload: Payload) -> Payload:
        """What the application stored beside the vector: the payload, or the mapping of its metadata."""
        inner = found(payload, self.metadata) if self.metadata else None
        return dict(inner if isinstance(inner, dict) else payload)

    def edition(self, fingerprint: str) -> str:
        """Names what this reading and the merger of this fingerprint make of a collection; 16 hex digits."""
        said = json.dumps([fingerprint, asdict(self)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def described(self) -> str:
        """For people."""
        order = ", then ".join(self.order_by) if self.order_by else "their ids"
        return f"grouped by {self.group_by}, ordered by {order}"


def found(payload: Payload, path: str) -> Any:
    """The value at a path of keys with dots between them; None where there is none.

    The path leads into mappings, and into text that holds a JSON object.
    """
    value: Any = payload
    for key in path.split("."):
        if type(value) is str and value.startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


@dataclass(frozen=True)
class Edition:
    """The merged vectors that one reading and one merger made.

    Attributes:
        name: what their payload key ``edition`` says.
        reading: the reading.
        fingerprint: of the merger.
        pieces: how many points hold its calibration; 0 for none.
        calibration_vectors: how many chunk vectors the calibration saw.
    """

    name: str
    reading: Reading
    fingerprint: str
    pieces: int = 0
    calibration_vectors: int = 0

    def ids(self, namespace: str) -> PointIds:
        """The ids of its points."""
        return PointIds(uuid5(UUID(namespace), self.name))


@dataclass(frozen=True)
class Foreign:
    """What the settings of a back-filled collection say of it.

    Attributes:
        current: what searches answer from; None until the first back-fill is complete.
        pending: what is being made; the current one while what it replaced is removed; None where nothing is
            to be done.
        holder: names the back-fill that is writing; None where none is.
    """

    current: Edition | None = None
    pending: Edition | None = None
    holder: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, place: str) -> Self | None:
        """Read what `values` made; None for a collection that this package wrote.

        Raises:
            StoreError: it is damaged.
        """
        if values is None:
            return None
        try:
            return cls(_edition(values["current"]), _edition(values["pending"]), values.get("holder"))
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"The settings of the back-filled collection in {place} are damaged ({error!r}). Drop its "
                "companion collection and run backfill() again."
            ) from error

    def values(self) -> dict[str, Any]:
        """For the settings point."""
        return asdict(self)

    @property
    def edition(self) -> Edition:
        """What is searched, or will be."""
        edition = self.current or self.pending
        assert edition is not None
        return edition


def _edition(values: Mapping[str, Any] | None) -> Edition | None:
    if values is None:
        return None
    reading = dict(values["reading"])
    reading["order_by"] = tuple(reading["order_by"])
    known = {field.name for field in fields(Edition)} - {"reading"}
    return Edition(reading=Reading(**reading), **{name: values[name] for name in known})
