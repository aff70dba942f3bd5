"""Conversations: what was said last, and a question that is merged with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.conversation import ConversationQuery, HistoryGate, merge_question
from merger_plugins.errors import InputError
from merger_plugins.stores.backend import Backend, Point
from merger_plugins.stores.changes import is_claim, tree_of
from merger_plugins.stores.places import filled
from merger_plugins.stores.records import PointIds

RecallLevel = Literal["turn", "episode", "conversation"]

HISTORY = 8
"""Turns before a question that it may be merged with; with a half-life of 3, older ones count for nothing."""


def last_turns(backend: Backend, ids: PointIds, conversation_id: str, turns: int) -> list[Point]:
    """The last chunk points of a conversation in reading order, with their raw vectors; two requests."""
    root_id = ids.root(conversation_id)
    root = backend.fetch("merged", [root_id]).get(root_id)
    if root is None or is_claim(root):
        return []
    places, gaps = tree_of(root)
    wanted = [ids.chunk(conversation_id, place) for place in filled(gaps, 0, places)[-turns:]]
    stored = backend.fetch("chunks", wanted, payload=["mass"], vectors=True)
    return [stored[point_id] for point_id in wanted if point_id in stored]


def follow_up(
    question: Vector, question_mass: float | None, turns: Sequence[Point], gate: HistoryGate | None
) -> ConversationQuery:
    """A question merged with the turns before it, as far as it needs them.

    Args:
        question: (d,) raw query vector.
        question_mass: its tokens, where they are known.
        turns: as `last_turns` gives them.
        gate: decides how far; None for the defaults.
    """
    told = [point for point in turns if point.vector is not None]
    history: Matrix = np.array([point.vector for point in told], np.float32)
    masses = [float(point.payload.get("mass", 1.0)) for point in told]
    return merge_question(
        question, history, question_mass=question_mass, masses=masses if told else None, gate=gate
    )


def checked_history(turns: int) -> int:
    """The number of turns, if it can be one.

    Raises:
        InputError: it is below 0.
    """
    if type(turns) is not int or turns < 0:
        raise InputError(f"history is {turns!r}; it takes a number of turns, from 0 on.")
    return turns
