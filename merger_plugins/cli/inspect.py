"""``merger-plugins inspect``: what the store holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from merger_plugins.cli import options
from merger_plugins.cli.output import running, table
from merger_plugins.cli.stores import opened

if TYPE_CHECKING:
    from merger_plugins.stores.upkeep import Inspection

_LISTED = 20


def command(
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Show what is stored, by which merger, the shape of the trees and the storage they take."""
    with running("inspect", as_json=as_json) as output:
        with opened(store, collection) as opened_store:
            inspection = opened_store.inspect()
            documents = sorted(opened_store.documents(), key=lambda document: document.id)
            merger = opened_store.merger
        ours = merger.fingerprint == inspection.fingerprint
        name = repr(merger) if ours else "another than the default"
        output.document.update(
            store=store,
            merger=name,
            **asdict(inspection),
            stored=[asdict(document) for document in documents],
        )
        figures = table("", "")
        figures.show_header = False
        for label, value in _figures(inspection, name):
            figures.add_row(label, value)
        listed = table("document", "chunks", "tokens", "kind", right=("chunks", "tokens"))
        for document in documents[:_LISTED]:
            kind = "conversation" if document.conversation else "document"
            listed.add_row(document.id, f"{document.chunks:,}", f"{document.mass:,.0f}", kind)
        output.print(figures, "", listed)
        if len(documents) > _LISTED:
            output.print(f"and {len(documents) - _LISTED:,} more; --json lists them all")


def _figures(inspection: Inspection, merger: str) -> list[tuple[str, str]]:
    sections = ", ".join(f"{count:,} of level {level}" for level, count in inspection.sections.items())
    merged = sum(inspection.sections.values()) + inspection.documents + inspection.conversations
    share = merged / inspection.chunks if inspection.chunks else 0.0
    calibration = (
        f"on {inspection.calibration_vectors:,} chunk vectors ({_size(inspection.calibration_bytes)})"
        if inspection.calibration_vectors
        else "none; run merger-plugins calibrate"
    )
    return [
        ("collection", f"{inspection.collection}, dimension {inspection.dimension}"),
        ("stored", f"documents: {inspection.documents:,}; conversations: {inspection.conversations:,}"),
        ("chunks", f"{inspection.chunks:,}{', with contextual vectors' if inspection.contextual else ''}"),
        ("trees", f"depth {inspection.depth}; sections: {sections or 'none'}; {share:.2f} merged per chunk"),
        ("vectors", _size(inspection.vector_bytes)),
        ("payloads", f"{_size(inspection.payload_bytes)}, estimated"),
        ("merger", f"{merger}, fingerprint {inspection.fingerprint}"),
        ("calibration", calibration),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
