"""`MergedStore`: documents and conversations in a vector database, searchable on every level."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from threading import RLock
from types import TracebackType
from typing import Any, Self

from merger_plugins._batching import as_matrix, as_vector
from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector, VectorLike
from merger_plugins.chunking import Chunker, SentenceChunker
from merger_plugins.conversation import ConversationQuery, HistoryGate
from merger_plugins.embedders import Embedder, MiniLMEmbedder, as_embedder, load_embedder
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.stores import upkeep
from merger_plugins.stores.appending import append
from merger_plugins.stores.backend import Backend, Payload, Where
from merger_plugins.stores.backfill import backfill
from merger_plugins.stores.checking import Problem, repair, verify
from merger_plugins.stores.desk import Desk
from merger_plugins.stores.documents import (
    Document,
    Ingested,
    Piece,
    Prepared,
    checked_id,
    pieces_of_turn,
    prepared,
    replacement,
    words,
)
from merger_plugins.stores.editing import delete, edit
from merger_plugins.stores.filling import GROWTH, Backfilled, BackfillProgress, Order
from merger_plugins.stores.foreign import ContextualPlace
from merger_plugins.stores.ingestion import ingest
from merger_plugins.stores.layouts import Wanted
from merger_plugins.stores.recall import HISTORY, RecallLevel, checked_history, follow_up, last_turns
from merger_plugins.stores.search import (
    OVERSAMPLING,
    FusionWeights,
    Hit,
    SearchLevel,
    any_merged,
    checked_level,
    search,
)
from merger_plugins.stores.state import StoreState
from merger_plugins.stores.upkeep import CHUNKS_AT_ONCE, Inspection, StoredDocument

_SPECIAL_TOKENS = 2


class MergedStore:
    """Chunk vectors in a user's collection, and the merged vectors over them in a companion collection.

    The adapters `merger_plugins.qdrant` and those beside it derive from this class and add the database.
    Chunk points carry the raw vector, the text and the metadata; the companion, named like the collection
    with ``__merged`` after it, carries sections, roots and the settings. It is a context manager, and opens
    nothing before it is used.

    Any number of threads, and on a server of processes, may write at once, also into one document: each
    operation happens as a whole, before or after every other. Whatever interrupts one, the next that touches
    the document completes or refuses it, `verify` finds it, and repeating the call ends in the state of a
    call that nothing interrupted.

    Args:
        backend: the database.
        merger: makes the merged vectors. None for `load_merger()` where the embedder is the bundled one or
            None, else for a `CalibratedMerger` of an unknown model. Where the store was calibrated, the
            merger it was calibrated from is enough. Pass ``CalibratedMerger(dimension=...)`` where the
            vectors passed in are another model's.
        embedder: makes chunk and query vectors from text, anything that `as_embedder` accepts;
            `load_embedder()` for None, and only once there is text to embed.
        chunker: splits texts; sentences packed up to 50 tokens for None.
        contextual: whether chunk points of a new collection get a contextual vector too. A collection that
            exists keeps what it was made with.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        merger: SequenceMerger | None = None,
        embedder: Any = None,
        chunker: Chunker | None = None,
        contextual: bool = False,
    ) -> None:
        self._backend = backend
        self._embedder: Embedder | None = None if embedder is None else as_embedder(embedder)
        self._chunker = chunker
        self._background: ThreadPoolExecutor | None = None
        self._calibrating = RLock()
        self._state = StoreState(
            backend,
            merger,
            default=self._default_merger,
            wants_contextual=contextual,
            embed=self._embed,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._backend.place!r}, collection={self._backend.collection!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database, once a calibration in the background is done; of no use afterwards."""
        if self._background is not None:
            self._background.shutdown()
        self._backend.close()

    @property
    def merger(self) -> SequenceMerger:
        """The merger at work, calibrated where the store is; opens the store."""
        return self._state.open().merger

    @property
    def embedder(self) -> Embedder:
        """The embedder at work; the bundled one is loaded here."""
        if self._embedder is None:
            self._embedder = load_embedder()
        return self._embedder

    # -- writing ---------------------------------------------------------------------------------------

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
        longest = self._trait("max_tokens") if isinstance(turn, str) else None
        pieces = pieces_of_turn(
            turn,
            text=text,
            mass=mass,
            speaker=speaker,
            time=time,
            metadata=metadata,
            chunker=self._splitter(),
            count=self._count,
            longest=None if longest is None else longest - _SPECIAL_TOKENS,
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
        ready = prepared(document, self._splitter(), self._count)
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
            return replacement(old, chunk, text=text, mass=mass, metadata=metadata, count=self._count)

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

    # -- reading ---------------------------------------------------------------------------------------

    def search(
        self,
        query: str | VectorLike,
        k: int = 10,
        level: SearchLevel = "chunk",
        *,
        filter: Any = None,
        documents: Sequence[str] | None = None,
        conversation: str | None = None,
        history: int = HISTORY,
        weights: FusionWeights | None = None,
        group_by_document: bool = False,
        oversampling: int = OVERSAMPLING,
    ) -> list[Hit]:
        """The best hits for a query, best first.

        Levels: ``"chunk"`` compares raw chunk vectors, ``"contextual"`` contextual ones, ``"section"`` the
        sections of level 1, ``"document"`` the roots. ``"fused"`` gives chunks, ranked by w_chunk · own
        cosine + w_section · its section + w_root · its document's root, the own cosine being contextual
        where the store has such vectors.

        A fused search looks at k · `oversampling` best chunks, and as many from the documents of the 2 k best
        roots. A chunk that is in neither has a smaller cosine than the last of the former, and its document a
        smaller root than the last of the latter; it is missed if it belongs among the first k all the same,
        for its section, or because the database's index overlooked it.

        Args:
            query: a text, or a raw query vector (d,).
            k: how many at the most.
            level: see above.
            filter: metadata that hits must have, as a mapping of key -> value or list of values, or the
                database's own filter object. On the level ``"fused"`` it chooses among the chunks.
            documents: ids of documents, of which hits must belong to one.
            conversation: id of a stored conversation in which the query is asked: it is merged with the last
                turns, as far as it needs them (`merger_plugins.merge_question`).
            history: how many turns those are at the most.
            weights: of a fused score.
            group_by_document: only the best hit of each document.
            oversampling: candidates for each hit of a fused search.

        Raises:
            EmptyInputError: a query without text.
            InputError: a vector, number, level or filter that is none.
            FingerprintError: the store holds merged vectors of another merger.
            StoreError: the database fails.
        """
        for name, value in (("k", k), ("oversampling", oversampling)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; it takes a number from 1 on.")
        state = self._state.open()
        checked_level(level, contextual=state.contextual)
        vector = self._query(query)
        if state.layout is None:
            return []
        if level != "chunk" and state.settings is None:
            return []
        if conversation is not None:
            vector = self.merged_question(query, conversation, history=history).vector
        options: dict[str, Any] = {
            "where": Where(documents=documents, filter=filter),
            "weights": weights or FusionWeights(),
            "per_document": group_by_document,
            "oversampling": oversampling,
        }
        while True:
            before = state.settings
            if level != "chunk":
                state.check()
            hits = search(self._backend, state.chunks(), vector, k, level, **options)
            if level == "chunk" or not (state.renewed(before) or (not any_merged(hits) and state.switched())):
                return hits

    def recall(
        self,
        question: str | VectorLike,
        k: int = 10,
        level: RecallLevel = "turn",
        *,
        conversation_id: str | None = None,
        history: int = 0,
        filter: Any = None,
    ) -> list[Hit]:
        """What was said about something: turns, episodes or whole conversations, best first.

        Args:
            question: a text, or a raw query vector (d,).
            k: how many at the most.
            level: ``"turn"``, in context where the store has contextual vectors; ``"episode"``, a section of
                ten turns; or ``"conversation"``.
            conversation_id: only this one; all of the store's conversations and documents for None.
            history: how many of its last turns the question may be merged with, as in `search`; 0 where the
                question is not part of the conversation.
            filter: as `search`.

        Raises:
            InputError: as `search`, or a level that there is not.
            FingerprintError, StoreError: as `search`.
        """
        contextual = self._state.open().contextual
        levels: dict[str, SearchLevel] = {
            "turn": "contextual" if contextual else "chunk",
            "episode": "section",
            "conversation": "document",
        }
        if level not in levels:
            raise InputError(f"level is {level!r}; choose one of {', '.join(levels)}.")
        return self.search(
            question,
            k,
            levels[level],
            filter=filter,
            documents=None if conversation_id is None else [checked_id(conversation_id)],
            conversation=conversation_id if checked_history(history) else None,
            history=history,
        )

    def merged_question(
        self,
        question: str | VectorLike,
        conversation_id: str,
        *,
        history: int = HISTORY,
        gate: HistoryGate | None = None,
    ) -> ConversationQuery:
        """A question merged with the last turns of a stored conversation, as far as it needs them.

        Args:
            question: a text, or a raw query vector (d,).
            conversation_id: one that is not stored has no turns, so that the question stays as it is.
            history: how many turns at the most.
            gate: decides how far; None for the defaults, which are for the bundled embedder.

        Raises:
            InputError: as `search`.
            StoreError: the database fails.
        """
        checked_history(history)
        state = self._state.open()
        vector = self._query(question)
        mass = float(max(self._count(question), 1)) if isinstance(question, str) else None
        known = state.settings is not None and history and state.foreign is None
        turns = last_turns(self._backend, state.ids, checked_id(conversation_id), history) if known else []
        return follow_up(vector, mass, turns, gate)

    def documents(self) -> Iterator[StoredDocument]:
        """The documents and conversations of the store, in no particular order."""
        state = self._state.open()
        if state.settings is not None:
            state.renewed()
            yield from upkeep.documents(self._backend, state.chunks().match)

    def inspect(self) -> Inspection:
        """Count what the store holds."""
        state = self._state.open()
        state.renewed()
        match = state.chunks().match
        return upkeep.inspect(self._backend, state.settings, state.layout, state.merger, match)

    # -- health ----------------------------------------------------------------------------------------

    def verify(self, document_id: str | None = None) -> Iterator[Problem]:
        """Compare what is stored with what the chunks give, and tell each difference as it is found.

        Reads every chunk vector and section, derives them again and compares to 1e-5. Changes nothing. What
        other writers have under way at the moment may be among the problems.

        Args:
            document_id: only this one; the whole store for None.

        Raises:
            StoreError: the database fails.
        """
        state = self._state.open()
        state.renewed()
        if state.settings is not None:
            yield from verify(state.desk(), state.settings, document_id)

    def repair(self, document_id: str | None = None) -> list[Problem]:
        """Put right what `verify` finds, and return what is left.

        Completes what was interrupted, derives missing and wrong points again, and removes strays. Chunks
        whose document has no root become a document again. A missing chunk, and an `ingest` that was
        interrupted, need `ingest` or `delete`: those problems are left.

        Args:
            document_id: only this one; the whole store for None.

        Raises:
            FingerprintError: the store holds vectors of another merger; call `rebuild` instead.
            StoreError: the database fails; repeat the call.
        """
        state = self._state.open()

        def mend(desk: Desk) -> list[Problem]:
            return [] if state.settings is None else repair(desk, state.settings, document_id)

        return state.write(mend)

    # -- merger ----------------------------------------------------------------------------------------

    @property
    def calibration_due(self) -> bool:
        """Whether the store has half as many chunks more than its calibration saw, or none; counts them."""
        return self._has_grown(GROWTH - 1)

    def calibrate(self, *, if_grown: float | None = None) -> SequenceMerger:
        """Calibrate the merger on the chunk vectors of this store, and derive every merged vector again.

        Reads all chunk vectors twice, and embeds nothing. The calibration stays with the store: opening it
        with the merger from before is enough. Worth repeating as the store grows.

        Others may go on meanwhile, in this process or another: searches answer from the old vectors, all of
        them, until the new ones take over, and then from those. Writers wait for that moment, which takes a
        read and a write for each document. Contextual chunk vectors are replaced one document after another
        afterwards; until that is done, the levels ``"contextual"`` and ``"fused"`` compare raw chunk vectors
        in their place.

        Args:
            if_grown: do nothing unless the chunks are more by this part than when the store was last
                calibrated, 0.5 being half as many again; or it never was.

        Returns:
            The merger at work now.

        Raises:
            EmptyInputError: the store is empty.
            InputError: `if_grown` is negative.
            StoreError: the database fails; interrupted, call it again.
            ConflictError: another `calibrate` or `rebuild` began after this one.
        """
        if if_grown is not None and not if_grown >= 0:
            raise InputError(f"if_grown is {if_grown!r}; it takes a number from 0 on, such as 0.5.")
        with self._calibrating:
            state = self._state.open()
            state.refuse_foreign("calibrate()")
            state.renewed()
            if state.settings is None:
                raise EmptyInputError(f"{self!r} holds no document; ingest some before calibrate().")
            if if_grown is not None and not self._has_grown(if_grown):
                return state.merger
            statistics = upkeep.gather(state.desk())
            calibrated = state.merger.calibrated(statistics)
            state.take_over(calibrated, statistics)
            return calibrated

    def calibrate_in_background(self, *, if_grown: float | None = None) -> Future[SequenceMerger]:
        """Let a thread of this store `calibrate`; several calls are done one after another.

        Returns:
            What `calibrate` returns or raises, as a future. `close` waits for it.
        """
        if self._background is None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="merger_plugins_calibrate")
        return self._background.submit(self.calibrate, if_grown=if_grown)

    def rebuild(self, *, calibrated: bool = True) -> None:
        """Derive every merged vector again from the stored chunk vectors, with the merger of this store.

        For a store that another merger wrote, one whose calibration was interrupted, or one that lost points
        of its companion collection. With another merger, others may go on as during `calibrate`; with the
        same, each document is put right by itself.

        Args:
            calibrated: False drops a stored calibration and goes back to the merger that was passed in.

        Raises:
            StoreError: the database fails; interrupted, call it again.
            ConflictError: as `calibrate`.
        """
        with self._calibrating:
            state = self._state.open()
            state.renewed()
            state.take_over(state.merger if calibrated else state.given)

    def _has_grown(self, part: float) -> bool:
        state = self._state.open()
        if state.settings is None or state.foreign is not None:
            return False
        state.renewed()
        seen = state.settings.calibration_vectors
        chunks = self._backend.count("chunks", Where())
        return chunks > 0 if not seen else chunks >= (1 + part) * seen

    def backfill(
        self,
        *,
        group_by: str | None = None,
        order_by: str | Sequence[str] | None = None,
        text: str | None = None,
        vector: str | None = None,
        contextual: ContextualPlace | None = None,
        contextual_vector: str | None = None,
        calibrate: bool | None = None,
        skip_missing: bool = False,
        anew: bool = False,
        scratch: str | os.PathLike[str] | None = None,
        progress: Callable[[BackfillProgress], object] | None = None,
    ) -> Backfilled:
        """Add section and root vectors to a collection that another application wrote.

        Everything goes into the companion collection; the application's own points are read and never
        written, but for the vector that ``contextual="named"`` names. Each point is read once a call. Where
        documents did not change since the last call, nothing is merged or written; interrupted, the same
        call goes on. Memory stays bounded, and a temporary file takes 4 d bytes a chunk and a few hundred
        more. Where neither a merger nor an embedder was passed to the store, nothing is known of the
        embedding model but what the collection's own vectors tell.

        Args:
            group_by: payload field that names a point's document, dots leading into mappings, such as
                ``"metadata.source"``. Recognised for None where LangChain or LlamaIndex wrote the points, or
                where the name of a field is a usual one.
            order_by: field or fields that order a document's chunks, the first deciding; ``"none"`` for the
                order of ids. Recognised for None as above, else an error names the fields that there are.
            text: field of the text; recognised for None.
            vector: name of the chunk vector, where points have several.
            contextual: ``"companion"`` puts contextual chunk vectors into the companion, ``"named"`` into a
                vector that the application's points have room for; ``"none"``, as None at first, makes none.
            contextual_vector: the name of that vector; ``"contextual"`` for None.
            calibrate: whether to calibrate the merger on the collection. None does where it is a
                `CalibratedMerger` without statistics, and again once there are half as many chunks more; all
                merged vectors are then made again, and searches answer from the old ones until that is done.
            skip_missing: leave out points that lack a field or a vector, in place of an error.
            anew: let other fields, or another merger, than those of the last call take over, in the same way.
            scratch: folder for the temporary file; the system's for None.
            progress: called after every batch.

        Raises:
            InputError: something has to be said that is not recognised, or a field or vector is not there.
            FingerprintError: another merger than last time, and `anew` is off.
            StoreError: no such collection, one that this package wrote or that is not compared by cosine,
                points that lack something, or the database fails: what was written stays.
        """
        given = self._state.chosen or self._embedder is not None
        order = Order(
            Wanted(group_by, order_by, text, vector, contextual, contextual_vector),
            base=self._state.given if given else None,
            others=() if given else (self._state.given,),
            calibrate=calibrate,
            skip_missing=skip_missing,
            anew=anew,
            scratch=scratch,
            progress=progress,
        )
        try:
            return backfill(self._backend, order)
        finally:
            self._state.forget()

    # -- inside ----------------------------------------------------------------------------------------

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
            return prepared(document, self._splitter(), self._count)
        except Exception as error:  # noqa: BLE001 - a chunker may raise anything; it concerns this document alone
            return Ingested(document.id, error=error)

    def _splitter(self) -> Chunker:
        if self._chunker is None:
            self._chunker = SentenceChunker(count_tokens=self._count)
        return self._chunker

    def _count(self, text: str) -> int:
        """Tokens of a text by the embedder's own count, or else its words."""
        count: Callable[[str], int] = self._trait("count_tokens") or words
        return count(text)

    def _default_merger(self) -> SequenceMerger:
        # The background that load_merger() brings is the bundled model's, and would mislead for another.
        if self._embedder is None or isinstance(self._source(), MiniLMEmbedder):
            return load_merger()
        dimension = self._trait("dimension")
        if type(dimension) is not int or dimension < 1:
            dimension = len(self._embedder.embed_query("dimension"))
        return CalibratedMerger(dimension=dimension)

    def _source(self) -> Any:
        return getattr(self.embedder, "source", self.embedder)

    def _trait(self, name: str) -> Any:
        """Something that an embedder may have beside its two methods, wrapped or not."""
        return getattr(self._source(), name, None)

    def _embed(self, texts: Sequence[str]) -> Matrix:
        matrix = as_matrix(self.embedder.embed_documents(texts), what="The embedder's vectors")
        if len(matrix) != len(texts):
            raise DimensionError(f"The embedder gave {len(matrix)} vectors for {len(texts)} texts.")
        return matrix

    def _query(self, query: str | VectorLike) -> Vector:
        if isinstance(query, str):
            if not query.strip():
                raise EmptyInputError("The query is empty; there is nothing to search for.")
            vector = as_vector(self.embedder.embed_query(query), what="The query's vector")
        else:
            vector = as_vector(query, what="The query's vector")
        layout = self._state.layout
        if layout is not None and len(vector) != layout.dimension:
            raise DimensionError(
                f"The query has dimension {len(vector)}, and the collection {self._backend.collection!r} has "
                f"{layout.dimension}. Use the embedding model that it was made with."
            )
        return vector


def _checked_turn(turn_id: object) -> None:
    if turn_id is not None and (not isinstance(turn_id, str) or not turn_id):
        raise InputError(f"turn_id must be a string that is not empty, or None; {turn_id!r} arrived.")
