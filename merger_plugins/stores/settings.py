"""What a store keeps about itself: version, merger, calibration."""

from __future__ import annotations

import base64
from collections.abc import Iterator
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
        rebuilding: fingerprint of the merger that takes over, while it does.
        foreign: how `backfill` read chunk points that this package did not write (see
            `merger_plugins.stores.foreign`); None where it wrote them.
        version: grows with every change; 0 before the first.
    """

    namespace: str
    fingerprint: str
    fanout: int
    contextual: bool
    pieces: int = 0
    calibration_vectors: int = 0
    rebuilding: str | None = None
    foreign: dict[str, Any] | None = None
    version: int = 0

    @property
    def ids(self) -> PointIds:
        """The ids of this collection."""
        return PointIds(UUID(self.namespace))

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
        values = {key: value for key, value in asdict(self).items() if key != "version" or value}
        return Point(META_ID, {"schema": SCHEMA, "kind": "settings", **values})


def check(settings: Settings, merger: SequenceMerger, place: str) -> None:
    """Make sure that this merger made what the store holds.

    Raises:
        FingerprintError: it did not.
    """
    if settings.rebuilding is not None:
        raise FingerprintError(
            f"{place} is half rebuilt: a calibrate() or rebuild() was interrupted, so that it holds merged "
            f"vectors of two mergers ({settings.fingerprint} and {settings.rebuilding}). Call it again."
        )
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
            "or call calibrate() to gather it again from the chunks."
        ) from error


def drop_statistics(backend: Backend, *, keep: str | None) -> None:
    """Remove stored calibrations, but for the one of the merger with this fingerprint."""
    stale = [point.id for point in _calibrations(backend) if point.payload["fingerprint"] != keep]
    if stale:
        backend.delete("merged", stale)


def _calibrations(backend: Backend) -> Iterator[Point]:
    return backend.scan("merged", _CALIBRATION, payload=["fingerprint"])
