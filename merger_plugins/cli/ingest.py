"""``merger-plugins ingest``: files into the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merger_plugins.cli import options
from merger_plugins.cli.conversations import store_conversation
from merger_plugins.cli.output import Output, running
from merger_plugins.cli.readers import Conversation, Document, Found, Source, find_sources, read_source
from merger_plugins.cli.stores import opened
from merger_plugins.errors import DocumentError, InputError

if TYPE_CHECKING:
    from merger_plugins.stores.documents import Ingested
    from merger_plugins.stores.store import MergedStore

_BYTES_AT_ONCE = 32_768

Paths = Annotated[
    list[Path],
    typer.Argument(help="Files and folders: text, Markdown, HTML, PDF, and chats as JSON lines."),
]


def command(
    paths: Paths,
    store: options.Store = options.DEFAULT_STORE,
    collection: options.Collection = options.DEFAULT_COLLECTION,
    as_json: options.Json = False,
) -> None:
    """Store documents and chats, with the merged vectors over them.

    What is stored already is not embedded again. A document's id is its path inside the folder named. A
    .jsonl file is one chat: a line is a turn with a text and, where known, turn_id, session, time, speaker.
    """
    with running(
        "ingest", as_json=as_json, interrupted="Run the same command again: it completes."
    ) as output:
        began = time.perf_counter()
        found = find_sources(paths)
        _report(found, output)
        job = _Job(output)
        due = False
        output.document.update(store=store, collection=collection, files=job.files)
        if found.sources:
            with opened(store, collection, create=True) as opened_store:
                job.run(opened_store, found.sources)
                due = opened_store.calibration_due
        seconds = round(time.perf_counter() - began, 1)
        output.document.update(seconds=seconds, calibration_due=due)
        if job.files:
            output.print(f"{job.summary()} ({seconds} s; {store}, collection {collection})")
        if due:
            output.print("Not calibrated on most of these chunks yet: run merger-plugins calibrate")


def _report(found: Found, output: Output) -> None:
    for error in found.errors:
        output.problem(error)
    if found.others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.others.most_common())
        output.note(f"left out, as files of these kinds are not read: {kinds}")


class _Job:
    """Stores files one after another; what goes wrong with one of them does not stop the others."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.files: list[dict[str, Any]] = []

    def run(self, store: MergedStore, sources: Sequence[Source]) -> None:
        with self.output.progress("ingesting", sum(source.size for source in sources)) as advance:
            waiting: list[tuple[Source, Document]] = []
            for source, content in self._read(sources, advance):
                if isinstance(content, Conversation):
                    self._conversation(store, source, content, advance)
                    continue
                waiting.append((source, content))
                if sum(queued.size for queued, _ in waiting) >= _BYTES_AT_ONCE:
                    self._documents(store, waiting, advance)
                    waiting = []
            if waiting:
                self._documents(store, waiting, advance)

    def _read(
        self, sources: Sequence[Source], advance: Callable[[float], None]
    ) -> Iterator[tuple[Source, Document | Conversation]]:
        for source in sources:
            try:
                yield source, read_source(source)
            except DocumentError as error:
                self.output.problem(str(error))
                advance(source.size)

    def _documents(
        self,
        store: MergedStore,
        waiting: Sequence[tuple[Source, Document]],
        advance: Callable[[float], None],
    ) -> None:
        results = store.ingest_many([(document.id, document.text) for _, document in waiting])
        for (source, _), result in zip(waiting, results, strict=True):
            advance(source.size)
            if result.error is None:
                self._done("document", source.id, [result])
            else:
                self.output.problem(f"{source.path}: {result.error}")

    def _conversation(
        self,
        store: MergedStore,
        source: Source,
        conversation: Conversation,
        advance: Callable[[float], None],
    ) -> None:
        share = source.size / len(conversation.turns)
        try:
            results = store_conversation(store, conversation, progress=lambda: advance(share))
        except InputError as error:
            self.output.problem(f"{source.path}: {error}")
        else:
            self._done("chat", source.id, results)

    def _done(self, kind: str, name: str, results: Sequence[Ingested]) -> None:
        self.files.append(
            {
                "id": name,
                "kind": kind,
                "unchanged": all(result.unchanged for result in results),
                "embedded": sum(result.embedded for result in results),
                "points_written": sum(result.written for result in results),
                "points_deleted": sum(result.deleted for result in results),
            }
        )

    def summary(self) -> str:
        unchanged = sum(row["unchanged"] for row in self.files)
        embedded = sum(row["embedded"] for row in self.files)
        return f"{len(self.files)} files stored, {unchanged} of them unchanged; {embedded} chunks embedded"
