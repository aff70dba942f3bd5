"""``merger-plugins calibrate``: fit the merger to what is stored."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import running
from merger_plugins.cli.stores import opened


def command(
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    if_grown: Annotated[
        float | None,
        typer.Option(
            help="Only if there are this much more chunks than the last time, 0.5 being half as many."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Calibrate the merger on the stored chunk vectors, and derive every merged vector again.

    Nothing is embedded. Worth repeating as the store grows; a few hundred chunks are a beginning. Searches
    answer from the old vectors until the new ones are complete.
    """
    interrupted = "Run merger-plugins calibrate again: it completes."
    with running("calibrate", as_json=as_json, interrupted=interrupted) as output:
        began = time.perf_counter()
        with opened(store, collection) as opened_store:
            before = opened_store.inspect()
            with output.waiting(f"calibrating on {before.chunks:,} chunk vectors"):
                opened_store.calibrate(if_grown=if_grown)
            after = opened_store.inspect()
        seconds = round(time.perf_counter() - began, 1)
        output.document.update(
            store=store,
            collection=collection,
            vectors=after.calibration_vectors,
            fingerprint_before=before.fingerprint,
            fingerprint=after.fingerprint,
            calibrated=after.fingerprint != before.fingerprint,
            seconds=seconds,
        )
        if if_grown is not None and after.fingerprint == before.fingerprint:
            output.print(
                f"Nothing to do: calibrated on {after.calibration_vectors:,} of {after.chunks:,} vectors."
            )
            return
        output.print(
            f"Calibrated on {after.calibration_vectors:,} chunk vectors in {seconds} s: merger "
            f"{before.fingerprint} -> {after.fingerprint}."
        )
