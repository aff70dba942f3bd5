"""``merger-plugins search``: the best passages or documents for a question."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import Output, running, table
from merger_plugins.cli.stores import opened

if TYPE_CHECKING:
    from merger_plugins.stores.search import Hit


class Level(StrEnum):
    """What is compared with the question."""

    chunk = "chunk"
    section = "section"
    document = "document"
    fused = "fused"
    contextual = "contextual"


def command(
    question: Annotated[str, typer.Argument(help="What to look for, in words.")],
    level: Annotated[
        Level,
        typer.Option(help="Chunks, sections, documents, chunks by all of these (fused), or in context."),
    ] = Level.chunk,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Search the store, best first."""
    with running("search", as_json=as_json) as output:
        with opened(store, collection) as opened_store:
            hits = opened_store.search(question, k, level.value)
        output.document.update(question=question, level=level.value, hits=[hit.described() for hit in hits])
        show(hits, output)


def show(hits: list[Hit], output: Output) -> None:
    """Print hits as a table."""
    if not hits:
        output.print("Nothing is stored that could be found.")
        return
    shown = table("#", "score", "where", "text", right=("#", "score"))
    for number, hit in enumerate(hits, 1):
        shown.add_row(str(number), f"{hit.score:.3f}", place(hit), snippet(spoken(hit)))
    output.print(shown)


def place(hit: Hit) -> str:
    """The document of a hit, and where in it."""
    name = hit.document_id or hit.id
    if hit.metadata.get("turn_id") is not None:
        return f"{name} turn {hit.metadata['turn_id']}"
    if hit.level == "document" or hit.position is None:
        return name
    first, last = hit.position + 1, hit.stop
    return f"{name} chunk {first}" if last == first else f"{name} chunks {first}-{last}"


def spoken(hit: Hit) -> str | None:
    """The text of a hit, after its speaker where it has one."""
    return f"{hit.speaker}: {hit.text}" if hit.speaker else hit.text


def snippet(text: str | None, length: int = 160) -> str:
    """The beginning of a text on one line."""
    words: Any = " ".join((text or "").split())
    return words if len(words) <= length else f"{words[: length - 1].rstrip()}…"
