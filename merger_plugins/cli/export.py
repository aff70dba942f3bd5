"""``merger-plugins export``: the merger as an ONNX folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merger_plugins import MeanMerger, SequenceMerger, TransformersMerger, load_merger
from merger_plugins.cli import options
from merger_plugins.cli.output import running
from merger_plugins.cli.stores import opened
from merger_plugins.errors import DimensionError, InputError


def command(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")],
    merger: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="A merger by name, such as 'mean', a model folder or a Hugging Face checkpoint; else the "
            "store's.",
        ),
    ] = None,
    dimension: Annotated[
        int | None, typer.Option(min=1, help="Of the vectors, for --merger mean, which works in any.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float16|mixed|int8",
            help="How the weights of a checkpoint are stored; mixed multiplies in float16, too, for GPUs. "
            "float32 if not said.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a checkpoint.")
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Write a merger as a model folder with an ONNX graph: the store's, calibration inside, or --merger."""
    with running("export", as_json=as_json) as output:
        if merger is not None:
            chosen = load_merger(merger, trust_remote_code=trust_remote_code)
            with output.waiting("exporting"):
                written = _export(chosen, folder, dimension, precision)
        else:
            with opened(store, collection) as opened_store:
                chosen, inspection = opened_store.merger, opened_store.inspect()
                if not inspection.calibration_vectors:
                    output.note("the store is not calibrated; this is the merger it was written with")
                written = _export(chosen, folder, dimension or inspection.dimension, precision)
        files = {path.name: path.stat().st_size for path in sorted(written.iterdir()) if path.is_file()}
        exported = load_merger(written)
        output.document.update(folder=str(written), merger=repr(exported), fingerprint=exported.fingerprint)
        output.document.update(source_fingerprint=chosen.fingerprint, files=files)
        listed = ", ".join(f"{name} ({size / 1e3:,.1f} kB)" for name, size in files.items())
        output.print(f"{written}: {listed}", f"load_merger({str(written)!r}) reads it.")


def _export(merger: SequenceMerger, folder: Path, dimension: int | None, precision: str | None) -> Path:
    if precision is not None and not isinstance(merger, TransformersMerger):
        raise InputError(f"{merger!r} is exported in float32 alone; leave out --precision.")
    if isinstance(merger, MeanMerger):
        return merger.export(folder, dimension=dimension)
    if dimension not in (None, merger.dimension):
        raise DimensionError(f"{merger!r} works in dimension {merger.dimension}; leave out --dimension.")
    if isinstance(merger, TransformersMerger):
        return merger.export(folder, precision=precision or "float32")
    return merger.export(folder)
