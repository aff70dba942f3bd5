"""What a store keeps about itself: version, merger, calibration."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from merger_plugins.errors import ArtefactError, FingerprintError, InputError, StoreError, StoreVersionError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.stores.backend import Backend, Point, Where
from merger_plugins.stores.records import META_ID, SCHEMA, PointIds

_PIECE = 512 * 1024
"""Bytes of statistics a point holds: below the request limits of servers, base64 included."""

_CALIBRATION = Where({"kind": "calibration"})


class EditionError(FingerprintError):
    """What was about to be written belongs to merged vectors that others are taking the place of."""


@dataclass(frozen=True)
class Settings:
    """The settings point.

    Attributes:
        namespace: of the ids of this collection.
        fingerprint: of the merger that made the merged vectors.
        fanout: of the merger.
        contextual: whether chunk points carry contextual vectors.
        pieces: how many points hold the calibration; 0 for none.
        calibration_vectors: how many chunk vectors the calibration saw.
        edition: of the merged vectors that are searched and written; empty for the first one.
        begun: how many editions were begun after the first one; each has its number for a name.
        rebuilding: the edition that is being made, to take its place; None where there is none.
        switching: whether it is about to take its place, so that writers wait.
        leftovers: whether points of other editions may be there.
        context: fingerprint of the merger that made the contextual chunk vectors, while those of the present
            merger take their places one by one, and none of them is searched; None where they are its own.
        foreign: how `backfill` read chunk points that this package did not write (see
            `merger_plugins.stores.foreign`); None where it wrote them.
        half_life: at which the masses of conversations' turns fade in their roots, as `HalfLife.payload`
            gives it; None for no fading.
        version: grows with every change; 0 before the first.
    """

    namespace: str
    fingerprint: str
    fanout: int
    contextual: bool
    pieces: int = 0
    calibration_vectors: int = 0
    edition: str = ""
    begun: int = 0
    rebuilding: str | None = None
    switching: bool = False
    leftovers: bool = False
    context: str | None = None
    foreign: dict[str, Any] | None = None
    half_life: dict[str, Any] | None = None
    version: int = 0

    @property
    def ids(self) -> PointIds:
        """The ids of this collection."""
        return PointIds(UUID(self.namespace), self.edition)

    @classmethod
    def of(cls, point: Point) -> Settings:
        """Read the settings point.

        Raises:
            StoreVersionError: a newer version wrote it.
            StoreError: it is damaged.
        """
        values: dict[str, Any] = dict(point.payload)
        version = values.pop("schema", None)
        if not isinstance(version, int):
            raise StoreError(
                f"The settings of this store are damaged: its schema version is {version!r}. Delete both "
                "collections and ingest again."
            )
        if version > SCHEMA:
            raise StoreVersionError(
                f"This store has schema version {version}, and this release reads up to {SCHEMA}. "
                "Run: pip install --upgrade merger-plugins"
            )
        for key in ("kind", "token"):
            values.pop(key, None)
        try:
            return cls(**values)
        except TypeError as error:
            raise StoreError(
                f"The settings of this store are damaged: {error}. Delete both collections and ingest again."
            ) from error

    def point(self) -> Point:
        """The point to store."""
        optional = ("version", "half_life")
        values = {key: value for key, value in asdict(self).items() if key not in optional or value}
        return Point(META_ID, {"schema": SCHEMA, "kind": "settings", **values})


def check(settings: Settings, merger: SequenceMerger, place: str) -> None:
    """Make sure that this merger made what the store holds.

    Raises:
        FingerprintError: it did not.
    """
    if settings.fingerprint != merger.fingerprint:
        raise FingerprintError(
            f"{place} holds merged vectors of the merger {settings.fingerprint}, and {merger!r} is "
            f"{merger.fingerprint}. Pass the merger it was written with, or call rebuild() or calibrate() to "
            "derive them all with this one: chunks are not embedded again."
        )


def resolved(settings: Settings | None, merger: SequenceMerger, backend: Backend) -> SequenceMerger:
    """The merger to work with: this one, or its calibrated form where that is what wrote the store.

    Raises:
        StoreError: the stored calibration is damaged.
    """
    if settings is None or not settings.pieces or merger.fingerprint == settings.fingerprint:
        return merger
    try:
        calibrated = merger.calibrated(read_statistics(settings, backend))
    except InputError:  # one that cannot be calibrated, or of another dimension, did not write this store
        return merger
    return calibrated if calibrated.fingerprint == settings.fingerprint else merger


def write_statistics(
    statistics: CalibrationStatistics, fingerprint: str, ids: PointIds, backend: Backend
) -> int:
    """Store a calibration for the merger with this fingerprint; returns the number of points."""
    data = statistics.to_bytes()
    points = [
        Point(
            ids.calibration(fingerprint, index),
            {
                "schema": SCHEMA,
                "kind": "calibration",
                "fingerprint": fingerprint,
                "data": base64.b64encode(data[start : start + _PIECE]).decode("ascii"),
            },
        )
        for index, start in enumerate(range(0, len(data), _PIECE))
    ]
    for point in points:
        backend.write("merged", [point])
    return len(points)


def read_statistics(settings: Settings, backend: Backend) -> CalibrationStatistics:
    """The stored calibration.

    Raises:
        StoreError: it is not complete, or damaged.
    """
    wanted = [settings.ids.calibration(settings.fingerprint, index) for index in range(settings.pieces)]
    points = backend.fetch("merged", wanted)
    try:
        data = b"".join(base64.b64decode(points[point_id].payload["data"]) for point_id in wanted)
        return CalibrationStatistics.from_bytes(data)
    except (KeyError, ValueError, ArtefactError) as error:
        raise StoreError(
            f"The calibration stored in {backend.place} is damaged ({error!r}). Pass the calibrated merger, "
            "or call calibrate() to gather it again from the chunks; for a collection that was back-filled, "
            "backfill(anew=True)."
        ) from error


def drop_statistics(backend: Backend, *, keep: str | None) -> None:
    """Remove stored calibrations, but for the one of the merger with this fingerprint."""
    stale = calibrations(backend, other_than=keep)
    if stale:
        backend.delete("merged", stale)


def calibrations(backend: Backend, *, other_than: str | None) -> list[str]:
    """Ids of the points of stored calibrations, but for the one of the merger with this fingerprint."""
    found = backend.scan("merged", _CALIBRATION, payload=["fingerprint"])
    return [point.id for point in found if point.payload["fingerprint"] != other_than]
