"""``merger-plugins verify``: whether the merged vectors are what the chunks give."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import running, table
from merger_plugins.cli.stores import opened

if TYPE_CHECKING:
    from merger_plugins.stores.checking import Problem

_LISTED = 50


def command(
    document: Annotated[
        str | None, typer.Argument(metavar="[DOCUMENT]", help="Only this document or conversation.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be derived from the chunks.")
    ] = False,
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Derive every section and root again and compare; exits with 1 where something is left wrong.

    In a back-filled collection, documents that the application changed since are told and count as no damage;
    --repair merges them too.
    """
    hint = "Nothing was changed." if not repair else "Run it again."
    with running("verify", as_json=as_json, interrupted=hint) as output:
        with opened(store, collection) as opened_store:
            with output.waiting("verifying"):
                found = list(opened_store.verify(document))
            left = found
            if repair and found:
                with output.waiting("repairing"):
                    left = opened_store.repair(document)
        output.document.update(
            store=store,
            collection=collection,
            problems=[asdict(problem) for problem in found],
            repaired=len(found) - len(left) if repair else 0,
            left=[asdict(problem) for problem in left],
        )
        if not found:
            output.print("Every section and root is what its chunks give.")
            return
        listed = table("document", "what", "problem", "detail")
        for problem in found[:_LISTED]:
            listed.add_row(problem.document_id or "", _what(problem), problem.kind, problem.detail)
        output.print(listed)
        if len(found) > _LISTED:
            output.print(f"and {len(found) - _LISTED:,} more; --json lists them all")
        if left and all(problem.kind == "outdated" for problem in left):
            output.note(
                f"{len(left):,} documents changed since the last back-fill. Run: merger-plugins backfill"
            )
        elif left and repair:
            output.problem(f"{len(left):,} problems are left: {left[0].document_id}: {left[0].detail}")
        elif left:
            output.problem(f"{len(left):,} problems. Run: merger-plugins verify --repair")
        else:
            output.print(f"{len(found):,} problems, all repaired.")


def _what(problem: Problem) -> str:
    if problem.position is None:
        return "document" if problem.document_id else "store"
    if problem.level is None:
        return "root"
    name = "chunk" if problem.level == 0 else f"section of level {problem.level}"
    return f"{name} at {problem.position}"
