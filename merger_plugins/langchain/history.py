"""`MergerChatHistory`: a conversation's messages, stored as turns that can be recalled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from merger_plugins.errors import InputError, StoreError
from merger_plugins.langchain.calls import called, embedded, plain
from merger_plugins.stores.asynchronous import AsyncMergedStore
from merger_plugins.stores.store import MergedStore

_MESSAGE, _KEY = "langchain_message", "langchain_id"
"""Metadata keys of a turn: the message as JSON text, and its id."""


class MergerChatHistory(BaseChatMessageHistory):
    """The messages of one session, each a turn of a conversation in a hook's collection.

    Works as every chat history of LangChain, in ``RunnableWithMessageHistory`` for instance. Beside that the
    conversation has vectors on every level, so that what was said is found again (`recall`), and a follow-up
    question can be merged with it: ``MergerRetriever(hook=documents, conversations=hook)`` with
    ``conversation=session_id``.

    A message without text, such as a bare tool call, is kept, and stands for nothing in the vectors but the
    word in brackets that takes the text's place.

    Args:
        hook: of a collection that this package writes; `AsyncMergedStore` for the coroutines alone.
        session_id: names the conversation.
        speakers: message type -> the speaker's name, which is embedded with the text; the type itself where
            nothing is said.
        said_at: gives the time of a message, a datetime or ISO 8601 text, where chats of another day are
            added; None for the moment of adding. Pauses divide a conversation into sittings.
    """

    def __init__(
        self,
        hook: MergedStore | AsyncMergedStore,
        session_id: str,
        *,
        speakers: dict[str, str] | None = None,
        said_at: Callable[[BaseMessage], datetime | str] | None = None,
    ) -> None:
        if not isinstance(hook, MergedStore | AsyncMergedStore):
            raise InputError(
                f"hook is a {type(hook).__qualname__}; pass a store such as QdrantStore or ChromaStore."
            )
        self.hook = hook
        self.session_id = session_id
        self._speakers = speakers or {}
        self._said_at = said_at

    @property  # of a base that says no more than that there are messages
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """All messages of the session, in order; those that `add_messages` stored."""
        return _messages(self._plain().contents(self.session_id))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages as turns, in order.

        A message with an id that was stored already is not stored again, so that an interrupted call can be
        repeated; those without get one.

        Raises:
            StoreError: the database fails; repeat the call with the same messages.
        """
        hook = self._plain()
        for message in messages:
            hook.append(self.session_id, **self._turn(message))

    def clear(self) -> None:
        """Delete the conversation with all its vectors."""
        self._plain().delete(self.session_id)

    def recall(self, question: str, k: int = 4) -> list[BaseMessage]:
        """The messages nearest to a question, in the order in which they were said.

        Args:
            question: a text.
            k: how many at the most.
        """
        hits = self._plain().recall(question, k, conversation_id=self.session_id)
        return _messages(sorted(hits, key=lambda hit: hit.position or 0))

    async def aget_messages(self) -> list[BaseMessage]:
        """As `messages`."""
        return _messages(await called(self.hook, "contents", self.session_id))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """As `add_messages`."""
        for message in messages:
            await called(self.hook, "append", self.session_id, **self._turn(message))

    async def aclear(self) -> None:
        """As `clear`."""
        await called(self.hook, "delete", self.session_id)

    async def arecall(self, question: str, k: int = 4) -> list[BaseMessage]:
        """As `recall`."""
        vector = await embedded(self.hook, question)
        asked = question if vector is None else vector
        hits = await called(self.hook, "recall", asked, k, conversation_id=self.session_id)
        return _messages(sorted(hits, key=lambda hit: hit.position or 0))

    def _plain(self) -> MergedStore:
        return plain(self.hook, "aget_messages(), aadd_messages() and aclear()")

    def _turn(self, message: BaseMessage) -> dict[str, Any]:
        if not isinstance(message, BaseMessage):
            raise InputError(f"A message is a BaseMessage; a {type(message).__qualname__} arrived.")
        if message.id is None:
            message.id = str(uuid4())
        return {
            "turn": _text_of(message) or f"[{message.type}]",
            "speaker": self._speakers.get(message.type, message.type),
            "time": datetime.now(UTC) if self._said_at is None else self._said_at(message),
            "turn_id": message.id,
            "metadata": {_KEY: message.id, _MESSAGE: json.dumps(message_to_dict(message))},
        }


def _text_of(message: BaseMessage) -> str:
    """The text of a message, its blocks joined; other kinds of content have none."""
    if isinstance(message.content, str):
        return message.content.strip()
    parts = [
        part if isinstance(part, str) else part.get("text", "") if part.get("type") == "text" else ""
        for part in message.content
    ]
    return "".join(parts).strip()


def _messages(turns: Sequence[Any]) -> list[BaseMessage]:
    """The messages of turns, each once: a long one is several chunks."""
    found: dict[str, str] = {}
    for turn in turns:
        if _MESSAGE in turn.metadata:
            found.setdefault(turn.metadata[_KEY], turn.metadata[_MESSAGE])
    try:
        return messages_from_dict([json.loads(text) for text in found.values()])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"A stored message cannot be read ({error!r}): another version of LangChain wrote it, or it is "
            "damaged. The turns' texts are there: hook.contents()."
        ) from error
