"""Reading from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from merger_plugins._types import Vector, VectorLike
from merger_plugins.conversation import ConversationQuery, HistoryGate, load_gate
from merger_plugins.errors import InputError, StoreError
from merger_plugins.stores import upkeep
from merger_plugins.stores.backend import Point, Where
from merger_plugins.stores.base import StoreBase
from merger_plugins.stores.changes import is_claim
from merger_plugins.stores.contents import StoredChunk, contents
from merger_plugins.stores.documents import (
    checked_id,
)
from merger_plugins.stores.recall import (
    HISTORY,
    RecallLevel,
    Shown,
    checked_history,
    checked_shown,
    follow_up,
    last_turns,
    shown_chunks,
)
from merger_plugins.stores.search import (
    OVERSAMPLING,
    FusionWeights,
    Hit,
    SearchLevel,
    any_merged,
    best_hits,
    checked_level,
    passages,
    search,
)
from merger_plugins.stores.upkeep import Inspection, StoredDocument


class Reading(StoreBase):
    """Search on every level, recall, and what there is."""

    def search(
        self,
        query: str | VectorLike | ConversationQuery,
        k: int = 10,
        level: SearchLevel = "chunk",
        *,
        filter: Any = None,
        documents: Sequence[str] | None = None,
        conversation: str | None = None,
        history: int = HISTORY,
        shown: Shown = "keep",
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
            query: a text, a raw query vector (d,), or what `merged_question` or
                `merger_plugins.merge_question` makes of one and a conversation: it is searched with all of
                its `queries`, and a hit has the better of its scores, less its `doubts`.
            k: how many at the most.
            level: see above.
            filter: metadata that hits must have, as a mapping of key -> value or list of values, or the
                database's own filter object. On the level ``"fused"`` it chooses among the chunks.
            documents: ids of documents, of which hits must belong to one.
            conversation: id of a stored conversation in which the query is asked: it is merged with the last
                turns, as far as it needs them (`merger_plugins.merge_question`), and searched merged and
                alone; a hit has the better of its two scores, less what the history is doubted.
            history: how many turns those are at the most.
            shown: what becomes of stored chunks that those turns repeat, word for word or nearly, as replies
                that quote passages do: ``"keep"`` takes no notice; ``"away"`` turns the merged question away
                from them, so that what resembles them comes later; ``"skip"`` leaves them out of the hits,
                and the turns themselves with them. Looked for among what `filter` and `documents` let
                through, by a request for each turn; nothing is embedded.
            weights: of a fused score.
            group_by_document: only the best hit of each document.
            oversampling: candidates for each hit of a fused search.

        Raises:
            EmptyInputError: a query without text.
            InputError: a vector, number, level or filter that is none.
            FingerprintError: the store holds merged vectors of another merger.
            StoreError: the collection has chunks and nothing was merged; or the database fails.
        """
        for name, value in (("k", k), ("oversampling", oversampling)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; it takes a number from 1 on.")
        state = self._state.open()
        if level != "chunk":
            self._check_merged(level)
        checked_level(level, contextual=state.contextual)
        vectors, doubts = self._vectors_of(query)
        choice = checked_shown(shown, level)
        if state.layout is None:
            return []
        if level != "chunk" and state.settings is None:
            return []
        where, without = Where(documents=documents, filter=filter), set[str]()
        if conversation is not None:
            if isinstance(query, ConversationQuery):
                raise InputError("The query is merged with a conversation already; leave conversation= out.")
            turns = self._last_turns(conversation, history)
            repeated = [] if choice == "keep" else shown_chunks(state.chunks(), turns, conversation, where)
            asked = self._follow_up(query, vectors[0], turns, away=repeated if choice == "away" else ())
            vectors, doubts = list(asked.queries), asked.doubts
            if choice == "skip":
                without = {*repeated, *(point.id for turn in turns for point in turn)}
        weights = weights or FusionWeights()
        if level == "fused":  # whose scores are no cosines but sums of them
            doubts = [doubt * weights.total for doubt in doubts]
        options: dict[str, Any] = {
            "where": where,
            "without": without,
            "weights": weights,
            "per_document": group_by_document,
            "oversampling": oversampling,
        }
        while True:
            before = state.settings
            if level != "chunk":
                state.check()
            found = [search(self._backend, state.chunks(), each, k, level, **options) for each in vectors]
            hits = best_hits(found, doubts, k, per_document=group_by_document)
            if level == "chunk" or not (state.renewed(before) or (not any_merged(hits) and state.switched())):
                return hits

    def passages(
        self,
        query: str | VectorLike | ConversationQuery,
        k: int = 10,
        *,
        per_document: int = 3,
        filter: Any = None,
    ) -> list[Hit]:
        """Chunks of the best documents: of each its best ones, in reading order.

        Documents come in the order of their roots' cosines; chunks are chosen by contextual vectors where the
        store has them. A request for each document that is looked into.

        Args:
            query: as `search`.
            k: how many chunks at the most.
            per_document: how many of one document at the most.
            filter: as `search`, for chunks.

        Returns:
            Hits of the level ``"chunk"``, their documents' cosine in ``parts.root``.

        Raises:
            EmptyInputError, InputError, FingerprintError, StoreError: as `search`.
        """
        for name, value in (("k", k), ("per_document", per_document)):
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}; it takes a number from 1 on.")
        state = self._state.open()
        self._check_merged("document")
        vectors, doubts = self._vectors_of(query)
        if state.layout is None or state.settings is None:
            return []
        where = Where(filter=filter)
        while True:
            before = state.settings
            state.check()
            hits = passages(
                self._backend, state.chunks(), vectors, doubts, k, where=where, per_document=per_document
            )
            if not (state.renewed(before) or (not hits and state.switched())):
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
        vector: VectorLike | None = None,
        history: int = HISTORY,
        gate: HistoryGate | None = None,
    ) -> ConversationQuery:
        """A question merged with the last turns of a stored conversation, as far as it needs them.

        Args:
            question: a text, or a raw query vector (d,).
            conversation_id: one that is not stored has no turns, so that the question stays as it is.
            vector: (d,) the raw query vector of a text that the store's embedder has embedded already.
            history: how many turns at the most.
            gate: decides how far; None for `load_gate()` with the bundled embedder, `HistoryGate()` with any
                other, and where question and embedder are not known here.

        Raises:
            InputError: as `search`.
            StoreError: the database fails.
        """
        self._state.open()
        own = self._vector_of(question if vector is None else vector)
        return self._follow_up(question, own, self._last_turns(conversation_id, history), gate)

    def contents(self, document_id: str, *, last: int | None = None) -> list[StoredChunk]:
        """The chunks of a document, or the turns of a conversation, in reading order.

        Args:
            document_id: its name; none for one that is not stored.
            last: how many from the end; all for None.

        Raises:
            InputError: `last` is no number from 1 on.
            StoreError: the database fails.
        """
        if last is not None and (type(last) is not int or last < 1):
            raise InputError(f"last is {last!r}; it takes a number from 1 on, or None.")
        state = self._state.open()
        name = checked_id(document_id)
        if state.settings is None:
            return []
        while True:
            before = state.settings
            found = contents(state.chunks(), name, last)
            if found or not (state.renewed(before) or state.switched()):
                return found

    def root_vector(self, document_id: str) -> Vector | None:
        """The root vector of a document, or the rolling vector of a conversation: (d,) at unit length.

        Args:
            document_id: its name.

        Returns:
            None for one that is not stored.

        Raises:
            FingerprintError: the store holds merged vectors of another merger.
            StoreError: the collection has chunks and nothing was merged; or the database fails.
        """
        state = self._state.open()
        name = checked_id(document_id)
        self._check_merged("document")
        if state.settings is None:
            return None
        while True:
            before = state.settings
            state.check()
            root_id = state.chunks().root(name)
            root = self._backend.fetch("merged", [root_id], payload=["kind"], vectors=True).get(root_id)
            if root is not None and not is_claim(root):
                return root.vector
            if not (state.renewed(before) or state.switched()):
                return None

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

    def _last_turns(self, conversation_id: str, history: int) -> list[list[Point]]:
        checked_history(history)
        state = self._state.open()
        name = checked_id(conversation_id)
        if state.settings is None or not history or state.foreign is not None:
            return []
        return last_turns(self._backend, state.ids, name, history)

    def _follow_up(
        self,
        question: str | VectorLike,
        vector: Vector,
        turns: Sequence[Sequence[Point]],
        gate: HistoryGate | None = None,
        *,
        away: Sequence[str] = (),
    ) -> ConversationQuery:
        mass = float(max(self._texts.count(question), 1)) if isinstance(question, str) else None
        if gate is None and self._texts.bundled and (self._texts.chosen or isinstance(question, str)):
            gate = load_gate()
        stored = self._backend.fetch("chunks", away, payload=False, vectors=True) if away else {}
        shown = [point.vector for point in stored.values() if point.vector is not None]
        return follow_up(vector, mass, turns, gate, np.stack(shown) if shown else None)

    def _vectors_of(
        self, query: str | VectorLike | ConversationQuery
    ) -> tuple[list[Vector], Sequence[float]]:
        """What to search with, of the collection's dimension where there is one, and the doubt about each."""
        if isinstance(query, ConversationQuery):
            return [self._vector_of(row) for row in query.queries], query.doubts
        return [self._vector_of(query)], (0.0,)

    def _check_merged(self, level: str) -> None:
        """Refuse a search of merged vectors where there are chunks and nothing was merged."""
        state = self._state
        if state.settings is None and state.layout is not None and self._backend.count("chunks", Where()):
            raise StoreError(
                f"The collection {self._backend.collection!r} has chunks and no merged vectors, so that the "
                f"level {level!r} finds nothing. Call backfill(), or run merger-plugins backfill."
            )
