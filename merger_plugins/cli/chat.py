"""``merger-plugins chat``: a conversation that grows, and what it remembers."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from merger_plugins.cli import options
from merger_plugins.cli.conversations import append_turn, stored_turns
from merger_plugins.cli.output import Output, running
from merger_plugins.cli.readers import Turn, parse_turns
from merger_plugins.cli.search import show
from merger_plugins.cli.stores import opened
from merger_plugins.errors import EmptyInputError

if TYPE_CHECKING:
    from merger_plugins.stores.store import MergedStore

Turns = Annotated[
    list[str] | None,
    typer.Option(
        "--turn",
        metavar="TEXT",
        help="A turn to append, 'speaker: text' or a JSON object; may be repeated. Without --turn and "
        "--recall, turns are read from stdin, one a line.",
    ),
]


def command(
    conversation: Annotated[str, typer.Argument(help="Its name; the first turn begins it.")],
    turns: Turns = None,
    recall: Annotated[
        str | None, typer.Option(metavar="QUESTION", help="Show the turns that answer this.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many turns to recall.")] = 5,
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Append turns to a conversation, and recall what was said in it."""
    interrupted = "What was appended until then is stored; append the other turns."
    with running("chat", as_json=as_json, interrupted=interrupted) as output:
        new = parse_turns(_lines(turns, recall, output), name="stdin" if turns is None else "--turn")
        if not new and recall is None:
            raise EmptyInputError("No turn arrived. Pass --turn TEXT, or one turn a line on stdin.")
        output.document.update(conversation=conversation, appended=0)
        with opened(store, collection, create=bool(new)) as opened_store:
            before = len(stored_turns(opened_store, conversation))
            if new:
                _append(opened_store, conversation, new, before, output)
            if recall is not None:
                if not new and not before:
                    raise EmptyInputError(
                        f"There is no conversation {conversation!r} in {store}. Append turns to it first; "
                        "merger-plugins inspect lists what is there."
                    )
                hits = opened_store.recall(recall, k, conversation_id=conversation)
                output.document.update(question=recall, hits=[hit.described() for hit in hits])
                show(hits, output)


def _lines(turns: list[str] | None, recall: str | None, output: Output) -> list[str]:
    if turns is not None or recall is not None:
        return turns or []
    if sys.stdin.isatty():
        output.note("one turn a line, 'speaker: text'; Ctrl-D ends")
    return list(sys.stdin)


def _append(store: MergedStore, conversation: str, turns: list[Turn], before: int, output: Output) -> None:
    with output.progress("appending", len(turns), "turns") as advance:
        for number, turn in enumerate(turns, before + 1):
            append_turn(store, conversation, replace(turn, turn_id=turn.turn_id or str(number)))
            output.document["appended"] += 1
            advance(1)
    output.print(f"{len(turns)} turns appended to {conversation}, which has {before + len(turns)} now.")
