"""Conversations in the store: which turns are there, and adding those that are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from merger_plugins.cli.readers import Conversation, Turn

if TYPE_CHECKING:
    from merger_plugins.stores.contents import StoredChunk
    from merger_plugins.stores.documents import Ingested
    from merger_plugins.stores.store import MergedStore


def stored_turns(store: MergedStore, conversation_id: str) -> list[Turn]:
    """The turns of a conversation in their order; none where there is no such conversation."""
    return _turns(store.contents(conversation_id))


def append_turn(store: MergedStore, conversation_id: str, turn: Turn) -> Ingested:
    """Append a turn; its id and session become metadata."""
    metadata = {"turn_id": turn.turn_id, "session": turn.session}
    return store.append(
        conversation_id,
        turn.text,
        speaker=turn.speaker,
        time=turn.time,
        metadata={key: value for key, value in metadata.items() if value is not None},
    )


def store_conversation(
    store: MergedStore, conversation: Conversation, *, progress: Callable[[], None]
) -> list[Ingested]:
    """Append the turns that are not stored yet; what was appended by other means afterwards stays.

    Where the stored turns are not the first ones of `conversation`, it is stored anew.

    Args:
        store: where to.
        conversation: all its turns.
        progress: called after each turn.

    Returns:
        One result a turn that was appended.
    """
    known = [_comparable(turn) for turn in stored_turns(store, conversation.id)]
    turns = [_comparable(turn) for turn in conversation.turns]
    shared = min(len(known), len(turns))
    if known[:shared] != turns[:shared]:
        store.delete(conversation.id)
        shared = 0
    for _ in range(shared):
        progress()
    results = []
    for turn in conversation.turns[shared:]:
        results.append(append_turn(store, conversation.id, turn))
        progress()
    return results


def _comparable(turn: Turn) -> tuple[str | None, str | None, list[str]]:
    return turn.turn_id, turn.speaker, turn.text.split()


def _turns(chunks: Sequence[StoredChunk]) -> list[Turn]:
    """Turns from their chunks; a long turn has several, with the same id."""
    turns: list[Turn] = []
    for chunk in chunks:
        turn_id, text = chunk.metadata.get("turn_id"), chunk.text or ""
        if turns and turn_id is not None and turns[-1].turn_id == turn_id:
            text = f"{turns.pop().text} {text}"
        turns.append(Turn(text, turn_id, chunk.speaker, chunk.metadata.get("session"), chunk.time))
    return turns
