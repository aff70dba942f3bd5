"""Conversations: what was said last, and a question that is merged with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.conversation import REPEATED, ConversationQuery, HistoryGate, merge_question
from merger_plugins.errors import InputError
from merger_plugins.stores.backend import Backend, Point, Where
from merger_plugins.stores.changes import is_claim, tree_of
from merger_plugins.stores.chunks import ChunkPoints
from merger_plugins.stores.places import filled
from merger_plugins.stores.records import TEXT, PointIds

RecallLevel = Literal["turn", "episode", "conversation"]

HISTORY = 8
"""Turns before a question that it may be merged with; with a half-life of 3, older ones count for nothing."""


Shown = Literal["keep", "away", "skip"]
"""What becomes of stored passages that a conversation has shown already."""

_NEAR = 12
_SHORTEST_QUOTE = 20


def last_turns(backend: Backend, ids: PointIds, conversation_id: str, turns: int) -> list[list[Point]]:
    """The last turns of a conversation in reading order, with their raw vectors; two requests or a few more.

    Returns:
        The chunk points of each turn: one, or several where it is longer than the embedder reads.
    """
    root_id = ids.root(conversation_id)
    root = backend.fetch("merged", [root_id]).get(root_id)
    if root is None or is_claim(root):
        return []
    places, gaps = tree_of(root)
    full = filled(gaps, 0, places)
    found: list[Point] = []
    told: list[list[Point]] = []
    stop = len(full)
    while stop and len(told) <= turns:
        start = max(stop - turns, 0)
        wanted = [ids.chunk(conversation_id, place) for place in full[start:stop]]
        stored = backend.fetch("chunks", wanted, payload=_TURN_KEYS, vectors=True)
        found = [stored[point_id] for point_id in wanted if point_id in stored] + found
        told = _by_turn(found)
        stop = start
        if len(told) == turns and not found[0].payload.get("start"):
            break
    return told[-turns:]


_TURN_KEYS = ["mass", TEXT, "start", "end", "speaker"]


def _by_turn(chunks: Sequence[Point]) -> list[list[Point]]:
    """Chunk points of a conversation, those of one turn together: they tell how far into it each is."""
    turns: list[list[Point]] = []
    for chunk in chunks:
        before = turns[-1][-1].payload if turns else {}
        start, end = chunk.payload.get("start"), before.get("end")
        follows = start is not None and end is not None and start >= end
        if follows and before.get("speaker") == chunk.payload.get("speaker"):
            turns[-1].append(chunk)
        else:
            turns.append([chunk])
    return turns


def follow_up(
    question: Vector,
    question_mass: float | None,
    turns: Sequence[Sequence[Point]],
    gate: HistoryGate | None,
    shown: Matrix | None = None,
) -> ConversationQuery:
    """A question merged with the turns before it, as far as it needs them.

    Args:
        question: (d,) raw query vector.
        question_mass: its tokens, where they are known.
        turns: as `last_turns` gives them; the chunks of a turn are of one age.
        gate: decides how far; None for the defaults.
        shown: (s, d) raw vectors of passages to turn away from.
    """
    aged = [
        (point, age)
        for age, turn in zip(range(len(turns) - 1, -1, -1), turns, strict=True)
        for point in turn
        if point.vector is not None
    ]
    return merge_question(
        question,
        np.array([point.vector for point, _ in aged], np.float32),
        question_mass=question_mass,
        masses=[float(point.payload.get("mass", 1.0)) for point, _ in aged] if aged else None,
        ages=[age for _, age in aged] if aged else None,
        shown=shown,
        gate=gate,
    )


def shown_chunks(
    chunks: ChunkPoints, turns: Sequence[Sequence[Point]], conversation_id: str, where: Where
) -> list[str]:
    """Ids of stored chunks that turns repeat: nearly the same vector, or the same words inside the turn.

    Nothing is embedded; a request for each chunk of a turn, for the dozen nearest.

    Args:
        chunks: of the store.
        turns: as `last_turns` gives them.
        conversation_id: theirs; its own turns are no passages.
        where: among which chunks.
    """
    shown: dict[str, None] = {}
    for turn in turns:
        said = _words(" ".join(str(point.payload.get(TEXT) or "") for point in turn))
        for point in turn:
            if point.vector is None:
                continue
            for scored in chunks.nearest(point.vector, _NEAR, where, contextual=False):
                payload = scored.point.payload
                if chunks.document(payload) == conversation_id:
                    continue
                passage = _words(chunks.text(payload) or "")
                quoted = len(passage) >= _SHORTEST_QUOTE and passage in said
                if quoted or scored.score >= REPEATED:
                    shown[scored.point.id] = None
    return list(shown)


def _words(text: str) -> str:
    return " ".join(text.split())


def checked_shown(shown: str, level: str) -> Shown:
    """What becomes of passages that were shown, if it can be done on this level.

    Raises:
        InputError: there is no such choice, or not here.
    """
    if shown not in get_args(Shown):
        raise InputError(f"shown is {shown!r}; choose one of {', '.join(get_args(Shown))}.")
    if shown == "skip" and level in ("section", "document"):
        raise InputError(
            f"shown='skip' leaves out chunks, and the level {level!r} finds none. Pass shown='away', or "
            "search the level 'chunk', 'contextual' or 'fused'."
        )
    choice: Shown = shown  # type: ignore[assignment]
    return choice


def checked_history(turns: int) -> int:
    """The number of turns, if it can be one.

    Raises:
        InputError: it is below 0.
    """
    if type(turns) is not int or turns < 0:
        raise InputError(f"history is {turns!r}; it takes a number of turns, from 0 on.")
    return turns
