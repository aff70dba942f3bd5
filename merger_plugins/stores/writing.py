"""Writing into a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from merger_plugins._types import MassesLike, MatrixLike, VectorLike
from merger_plugins.errors import InputError
from merger_plugins.stores.appending import append
from merger_plugins.stores.backend import Payload
from merger_plugins.stores.base import StoreBase
from merger_plugins.stores.documents import (
    Document,
    Ingested,
    Piece,
    Prepared,
    checked_id,
    pieces_of_turn,
    prepared,
    replacement,
)
from merger_plugins.stores.editing import delete, edit
from merger_plugins.stores.ingestion import ingest
from merger_plugins.stores.upkeep import CHUNKS_AT_ONCE


class Writing(StoreBase):
    """Documents, turns and edits."""

    def ingest(
        self,
        document_id: str,
        text: str | None = None,
        *,
        chunks: Sequence[str] | None = None,
        vectors: MatrixLike | None = None,
        masses: MassesLike | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ingested:
        """Store a document, so that the store holds exactly this version of it.

        What is stored already is neither embedded nor written again: of a changed document only the chunks
        whose text changed are embedded. Interrupted, the same call completes it.

        Args:
            document_id: its name.
            text: the whole text; or else
            chunks: the text already split; or else
            vectors: (n, d) chunk vectors in reading order, `chunks` being their texts if given.
            masses: (n,) tokens each chunk stands for; counted where there is text to embed, else all alike.
            metadata: stored with every point of it, for filters; JSON values.

        Raises:
            EmptyInputError: no text.
            InputError: vectors, masses or metadata that cannot be stored.
            FingerprintError: the store holds vectors of another merger.
            StoreError: the database fails; see `merger_plugins.errors` for its kinds.
        """
        document = Document(document_id, text, chunks, vectors, masses, metadata)
        result = self.ingest_many([document])[0]
        if result.error is not None:
            raise result.error
        return result

    def ingest_many(
        self,
        documents: Iterable[Document | tuple[str, str]],
        *,
        progress: Callable[[Ingested], object] | None = None,
    ) -> list[Ingested]:
        """Store many documents, embedding and writing in batches.

        A document that cannot be stored does not stop the others: its result carries the error.

        Args:
            documents: `Document`s or (id, text), read as they are needed.
            progress: called with each result as soon as it is there.

        Returns:
            One result a document, in order.

        Raises:
            FingerprintError: the store holds vectors of another merger.
            StoreError: the database fails; what was reported to `progress` is stored.
        """
        results: list[Ingested] = []
        for batch in self._batches(documents):
            ready = {item.id: item for item in batch if isinstance(item, Prepared)}
            done = {}
            if ready:
                made = self._ingested(list(ready.values()))
                done = {result.document_id: result for result in made}
            for item in batch:
                result = item if isinstance(item, Ingested) else done[item.id]
                results.append(result)
                if progress is not None:
                    progress(result)
        return results

    def append(
        self,
        conversation_id: str,
        turn: str | VectorLike,
        *,
        speaker: str | None = None,
        time: datetime | float | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        text: str | None = None,
        mass: float | None = None,
        turn_id: str | None = None,
    ) -> Ingested:
        """Add a turn at the end of a conversation, or a chunk at the end of a document.

        Reads and writes a few points however long the conversation is. A turn longer than the embedder reads
        becomes several chunks.

        Args:
            conversation_id: its name; the first turn begins it.
            turn: the text, or its (d,) vector.
            speaker: embedded with the text, as ``speaker: text``.
            time: when it was said.
            metadata: stored with the turn; what all turns share is stored with the root.
            text: the text of a turn that is a vector.
            mass: tokens it stands for; counted where it is text, else 1.
            turn_id: your name for this turn within the conversation. With it, repeating the call changes
                nothing once the turn is stored, whoever stored it. Without it, a call that was interrupted
                can be repeated as long as nothing else was written to the conversation: a turn of the same
                content that was left half written is completed and not stored twice. A call that was
                interrupted after its last write, before it returned, cannot be told from one that never was:
                repeated without a `turn_id`, it stores the turn a second time.

        Raises:
            EmptyInputError: no text.
            InputError: a vector, mass or metadata that cannot be stored.
            FingerprintError: the store holds vectors of another merger.
            StoreError: the database fails; repeat the call.
            ConflictError: an `ingest` of this document is under way or was interrupted; or other writers were
                faster for half a minute.
        """
        _checked_turn(turn_id)
        pieces = pieces_of_turn(
            turn,
            text=text,
            mass=mass,
            speaker=speaker,
            time=time,
            metadata=metadata,
            chunker=self._texts.splitter,
            count=self._texts.count,
            longest=self._texts.longest if isinstance(turn, str) else None,
        )
        name = checked_id(conversation_id)
        return self._state.write(lambda desk: append(desk, name, pieces, turn_id=turn_id))

    def extend(
        self,
        document_id: str,
        chunks: Sequence[str] | None = None,
        *,
        vectors: MatrixLike | None = None,
        masses: MassesLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        turn_id: str | None = None,
    ) -> Ingested:
        """Add chunks at the end of a document, as one change; the first ones begin it.

        The chunks are in the document's root while they are written: for more than a few hundred at once,
        `ingest` the document.

        Args:
            document_id: its name.
            chunks: texts to embed, or the texts of `vectors`.
            vectors: (n, d) chunk vectors in reading order.
            masses: (n,) tokens each chunk stands for; counted where there is text to embed, else all alike.
            metadata: stored with the chunks; what all chunks share is stored with the root.
            turn_id: as `append`, for these chunks together.

        Raises:
            EmptyInputError: no text.
            InputError: vectors, masses or metadata that cannot be stored.
            FingerprintError: as `append`, like those that follow.
            StoreError: as above.
            ConflictError: as above.
        """
        _checked_turn(turn_id)
        document = Document(document_id, None, chunks, vectors, masses, metadata)
        ready = prepared(document, self._texts.splitter, self._texts.count)
        return self._state.write(
            lambda desk: append(desk, ready.id, ready.pieces, turn_id=turn_id, conversation=False)
        )

    def replace(
        self,
        document_id: str,
        position: int,
        chunk: str | VectorLike,
        *,
        text: str | None = None,
        mass: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ingested:
        """Put another chunk or turn in the place of one, or into a place that `remove` left empty.

        Only the sections that it belongs to and the root are derived again; where the contextual vectors of
        a whole document are due, those are. Speaker, time, and what is not given stay as they were.

        Args:
            document_id: name of the document or conversation.
            position: the place, from 0; a hit's `position`.
            chunk: the text, or its (d,) vector.
            text: the text of a chunk that is a vector.
            mass: tokens it stands for; counted where it is text, else as before.
            metadata: stored with the chunk in the place of its own.

        Raises:
            EmptyInputError: no text.
            InputError: no such document or place; a vector, mass or metadata that cannot be stored.
            FingerprintError: as `append`, like those that follow.
            StoreError: as above.
            ConflictError: as above.
        """

        def make(old: Payload) -> Piece:
            return replacement(old, chunk, text=text, mass=mass, metadata=metadata, count=self._texts.count)

        name = checked_id(document_id)
        return self._state.write(lambda desk: edit(desk, name, position, make))

    def remove(self, document_id: str, position: int) -> Ingested:
        """Remove a chunk or turn; its place stays empty, and later chunks keep their places.

        Derives as much again as `replace`. A place that is empty already stays so. The next `ingest` of the
        document leaves no empty places.

        Args:
            document_id: name of the document or conversation.
            position: the place, from 0.

        Raises:
            InputError: no such document or place, or its last chunk: call `delete`.
            FingerprintError: as `append`, like those that follow.
            StoreError: as above.
            ConflictError: as above.
        """
        name = checked_id(document_id)
        return self._state.write(lambda desk: edit(desk, name, position, None))

    def delete(self, document_id: str) -> bool:
        """Remove a document or conversation with all its points; returns whether there was one."""
        state = self._state.open()
        state.refuse_foreign("delete()")
        if state.layout is None or not state.layout.merged:
            return False
        name = checked_id(document_id)
        return state.write(lambda desk: delete(desk, name))

    def _batches(
        self, documents: Iterable[Document | tuple[str, str]]
    ) -> Iterator[list[Prepared | Ingested]]:
        """Checked documents in batches of about `CHUNKS_AT_ONCE` chunks, and errors in their places."""
        batch: list[Prepared | Ingested] = []
        seen: set[str] = set()
        waiting = 0
        for item in documents:
            ready = self._prepared(item)
            if isinstance(ready, Prepared):
                if ready.id in seen or waiting >= CHUNKS_AT_ONCE:
                    yield batch
                    batch, seen, waiting = [], set(), 0
                seen.add(ready.id)
                waiting += len(ready.pieces)
            batch.append(ready)
        if batch:
            yield batch

    def _ingested(self, documents: Sequence[Prepared]) -> list[Ingested]:
        return self._state.write(lambda desk: ingest(desk, documents))

    def _prepared(self, item: object) -> Prepared | Ingested:
        if isinstance(item, Document):
            document = item
        elif isinstance(item, tuple) and len(item) == 2:
            document = Document(*item)
        else:
            kind = type(item).__qualname__
            error = InputError(f"A document is a Document or a pair (id, text); a {kind} arrived.")
            return Ingested(str(item), error=error)
        try:
            return prepared(document, self._texts.splitter, self._texts.count)
        except Exception as error:  # noqa: BLE001 - a chunker may raise anything; it concerns this document alone
            return Ingested(document.id, error=error)


def _checked_turn(turn_id: object) -> None:
    if turn_id is not None and (not isinstance(turn_id, str) or not turn_id):
        raise InputError(f"turn_id must be a string that is not empty, or None; {turn_id!r} arrived.")
