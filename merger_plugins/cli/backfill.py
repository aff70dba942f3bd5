"""``merger-plugins backfill``: merged vectors over a collection that another application wrote."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import Advance, Output, running
from merger_plugins.cli.stores import connected
from merger_plugins.errors import InputError
from merger_plugins.mergers.loading import load_merger

if TYPE_CHECKING:
    from merger_plugins.stores.filling import Backfilled, BackfillProgress


PARQUET = "parquet:"
"""What a location of Parquet files begins with."""


class Engine(StrEnum):
    """What sorts and merges."""

    local = "local"
    ray = "ray"


class Contextual(StrEnum):
    """Where contextual chunk vectors go."""

    none = "none"
    companion = "companion"
    named = "named"


def command(
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Payload field that names a point's document: metadata.source."),
    ] = None,
    order_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Payload field that orders a document's chunks; may be repeated, the first one deciding. "
            "'none' for the order of ids.",
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Payload field of the text.")
    ] = None,
    vector: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which vector is the chunk's, where points have several."),
    ] = None,
    contextual: Annotated[
        Contextual | None,
        typer.Option(
            help="Contextual chunk vectors too: into the companion, or into a named vector of the points, "
            "which is the only case in which your own points are written."
        ),
    ] = None,
    contextual_vector: Annotated[
        str | None, typer.Option(metavar="NAME", help="That named vector.  [default: contextual]")
    ] = None,
    merger: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="What to start from, such as 'calibrated-all-MiniLM-L6-v2' for that embedding model, or "
            "'mean'; else nothing but the collection's own vectors.",
        ),
    ] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Calibrate on the collection.  [default: the first time, and when it has grown by half]",
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out points that lack a field or a vector.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Let other fields or another merger than last time take over.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the temporary file.")
    ] = None,
    one_process: Annotated[
        bool,
        typer.Option(
            "--one-process",
            help="Do without the second process that sorts and merges the points of large collections.",
        ),
    ] = False,
    engine: Annotated[
        Engine,
        typer.Option(
            help="'ray' for many workers, here or on a cluster; servers are written by all of them."
        ),
    ] = Engine.local,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="CPUs that Ray uses.  [default: all]")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray cluster.  [default: RAY_ADDRESS, else this machine]"),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URI",
            help="For --store parquet:DIR with one row a chunk: where section and root vectors go. Columns: "
            "--group-by, --order-by (positions from 0 on), --vector.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Add section and root vectors to a collection that LangChain, LlamaIndex or your own code wrote.

    They go into a companion collection, NAME__merged; your points are only read. Fields are recognised where
    they have usual names. Run it again after the collection changed: what is done is not done again.
    """
    if store.startswith(PARQUET):
        _parquet(
            store.removeprefix(PARQUET),
            into,
            engine=engine,
            workers=workers,
            address=address,
            columns=(group_by, order_by, vector),
            merger=merger,
            calibrate=calibrate,
            anew=anew,
            unused=(
                text_field,
                contextual,
                contextual_vector,
                skip_missing or None,
                scratch,
                one_process or None,
            ),
            as_json=as_json,
        )
        return
    interrupted = "What is written stays; run the same command again, and it goes on."
    with running("backfill", as_json=as_json, interrupted=interrupted) as output:
        began = time.perf_counter()
        _refuse(engine, workers, address, into, scratch, one_process)
        base = None if merger is None else load_merger(merger)
        with connected(store, collection, merger=base) as opened_store, _Bars(output) as bars:
            done = opened_store.backfill(
                group_by=group_by,
                order_by=order_by or None,
                text=text_field,
                vector=vector,
                contextual=None if contextual is None else contextual.value,
                contextual_vector=contextual_vector,
                calibrate=calibrate,
                skip_missing=skip_missing,
                anew=anew,
                scratch=scratch,
                one_process=one_process,
                engine=_ray().RayEngine(workers=workers, address=address) if engine == Engine.ray else None,
                progress=bars,
            )
        seconds = round(time.perf_counter() - began, 1)
        output.document.update(store=store, **asdict(done), seconds=seconds)
        _show(done, seconds, store, output)


def _parquet(
    source: str,
    into: str | None,
    *,
    engine: Engine,
    workers: int | None,
    address: str | None,
    columns: tuple[str | None, list[str] | None, str | None],
    merger: str | None,
    calibrate: bool | None,
    anew: bool,
    unused: tuple[object, ...],
    as_json: bool,
) -> None:
    interrupted = "What is written stays; run the same command again, and it goes on."
    with running("backfill", as_json=as_json, interrupted=interrupted) as output:
        if engine != Engine.ray or into is None or any(value is not None for value in unused):
            raise InputError(
                "--store parquet:DIR needs --engine ray and --into DIR, and takes --group-by, --order-by, "
                "--vector, --merger, --calibrate, --anew, --workers and --address besides."
            )
        document, order, vector = columns
        if order is not None and len(order) != 1:
            raise InputError(f"{len(order)} --order-by arrived; a Parquet file has one column of positions.")
        ray = _ray()
        began = time.perf_counter()
        named = ray.Columns(
            document or ray.Columns.document,
            order[0] if order else ray.Columns.position,
            vector or ray.Columns.vector,
        )
        base = None if merger is None else load_merger(merger)
        with ray.cluster(workers=workers, address=address), output.waiting("merging"):
            done = ray.backfill_parquet(
                source, into, merger=base, columns=named, calibrate=calibrate, anew=anew
            )
        seconds = round(time.perf_counter() - began, 1)
        output.document.update(store=f"{PARQUET}{source}", into=into, **asdict(done), seconds=seconds)
        output.print(
            f"{done.chunks:,} chunks in {done.documents:,} documents, of which {done.merged:,} were merged "
            f"now ({seconds} s; {done.files:,} files in {into})."
        )


def _refuse(
    engine: Engine,
    workers: int | None,
    address: str | None,
    into: str | None,
    scratch: Path | None,
    one_process: bool,
) -> None:
    """Refuse options that mean nothing here."""
    if into is not None:
        raise InputError("--into is for --store parquet:DIR; a database takes the vectors itself.")
    if engine != Engine.ray and (workers is not None or address is not None):
        raise InputError("--workers and --address are for --engine ray.")
    if engine == Engine.ray and (scratch is not None or one_process):
        raise InputError(
            "--scratch and --one-process are not for --engine ray, which keeps chunks in its own store: "
            "start the cluster with --object-spilling-directory to say where."
        )


def _ray() -> Any:
    """The adapter, imported once it is asked for."""
    return import_module("merger_plugins.ray")


class _Bars(ExitStack):
    """A bar for each stage, one after another."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._stage = ""
        self._done = 0
        self._advance: Advance = lambda _: None

    def __call__(self, progress: BackfillProgress) -> None:
        if progress.stage != self._stage:
            self.close()
            self._stage, self._done = progress.stage, 0
            bar = self._output.progress(progress.stage, progress.total, "chunks")
            self._advance = self.enter_context(bar)
        self._advance(progress.done - self._done)
        self._done = progress.done


def _show(done: Backfilled, seconds: float, store: str, output: Output) -> None:
    order = " and ".join(done.order_by) if done.order_by else "their ids"
    output.print(
        f"{done.layout} layout: {done.chunks:,} chunks in {done.documents:,} documents, grouped by "
        f"{done.group_by}, ordered by {order}.",
        f"{done.merged:,} documents merged, {done.documents - done.merged:,} unchanged, {done.removed:,} "
        f"gone ({seconds} s; {store}, into {done.collection}__merged).",
    )
    for what, count in done.left_out.items():
        output.note(f"left out: {count:,} points without {what}")
    if done.ties:
        output.note(
            f"{done.ties:,} points share their place in their document with another; these are in the order "
            "of their ids. Name a second field with another --order-by if there is one."
        )
    if done.documents == done.chunks > 1:
        output.note(
            f"every document has one chunk: {done.group_by} seems to name chunks. Name the field that chunks "
            "of one document share: --group-by FIELD --anew"
        )
