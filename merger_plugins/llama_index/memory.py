"""`RollingMemoryBlock`: what was said before, recalled by merged vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakKeyDictionary

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.memory import BaseMemoryBlock
from pydantic import Field, PrivateAttr, field_validator

from merger_plugins.errors import InputError, MergerError, StoreError
from merger_plugins.llama_index.calls import checked_store, of_store
from merger_plugins.llama_index.fields import Live
from merger_plugins.stores.documents import words
from merger_plugins.stores.search import Hit

SESSION = "default"
"""The session of messages that say none."""

_SESSION_KEY = "session_id"


class RollingMemoryBlock(BaseMemoryBlock[str]):
    """Long-term memory for `Memory`: every session is a conversation in an ingestion hook's store.

    Messages that leave the short-term memory are appended to their session, each embedded once, and the
    session's rolling vector is kept up to date. For the latest message, the turns that belong to it are
    recalled: turns, or episodes of ten. The store keeps everything, so that another process goes on where
    this one stopped.

    Where the store or its embedder fails, the error is raised, and what was not stored is kept in this
    process and stored before the next messages. Text that cannot be stored at all is not kept.

    Attributes:
        store: a `QdrantStore` or `ChromaStore`, or the asynchronous form of one; its ``embedder=`` may be
            LlamaIndex's. Make it with ``contextual=True``, so that turns are compared in their context.
        recall: ``"turn"`` or ``"episode"``.
        similarity_top_k: how many of them at the most.
        across_sessions: whether other sessions of the store are recalled from too.
        history: how many of the session's last stored turns the message is merged with, as far as it needs
            them; 0 takes it as it is.
        roles: whose messages are kept.
    """

    name: str = Field(default="RollingMemory")
    store: Live
    recall: Literal["turn", "episode"] = "turn"
    similarity_top_k: int = Field(default=4, gt=0)
    across_sessions: bool = False
    history: int = Field(default=0, ge=0)
    roles: tuple[str, ...] = ("user", "assistant")

    _waiting: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _turns_taken: Any = PrivateAttr(default_factory=WeakKeyDictionary)

    @field_validator("store")
    @classmethod
    def _is_store(cls, store: Any) -> Any:
        return checked_store(store)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class."""
        return "RollingMemoryBlock"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self._waiting += [turn for message in messages if (turn := self._turn(message)) is not None]
        loop = asyncio.get_running_loop()
        async with self._turns_taken.setdefault(loop, asyncio.Lock()):
            await self._store_waiting()

    async def _store_waiting(self) -> None:
        while self._waiting:
            try:
                await of_store(self.store, "append", **self._waiting[0]).awaited()
            except ValueError as error:  # of this text: it would fail again
                turn = self._waiting.pop(0)
                raise InputError(
                    f"The message {turn['turn']!r:.80} cannot be stored and is left out: {error}"
                ) from error
            except MergerError:
                raise
            except Exception as error:  # the embedder's own
                raise StoreError(
                    f"{len(self._waiting)} messages could not be stored ({error!r}). They are kept in memory "
                    "and stored before the next ones; put the cause right."
                ) from error
            self._waiting.pop(0)

    def _turn(self, message: ChatMessage) -> dict[str, Any] | None:
        """What `MergedStore.append` is told of a message; None where there is no text to keep."""
        text = _text_of(message)
        if message.role.value not in self.roles or not text:
            return None
        return {
            "conversation_id": str(message.additional_kwargs.get(_SESSION_KEY) or SESSION),
            "turn": text,
            "speaker": message.role.value,
            "turn_id": uuid4().hex,
        }

    async def _aget(
        self,
        messages: list[ChatMessage] | None = None,
        session_id: str | None = None,
        **block_kwargs: Any,  # noqa: ARG002 - the host's
    ) -> str:
        latest = next((text for message in reversed(messages or []) if (text := _question_of(message))), None)
        if latest is None:
            return ""
        session = str(session_id or SESSION)
        if self.history:
            merged = of_store(self.store, "merged_question", latest, session, history=self.history)
            question: Any = (await merged.awaited()).vector
        else:
            question = latest
        among = None if self.across_sessions else session
        hits: Sequence[Hit] = await of_store(
            self.store, "recall", question, self.similarity_top_k, self.recall, conversation_id=among
        ).awaited()
        return "\n".join(_line(hit) for hit in sorted(hits, key=_when) if hit.text)

    async def asession_vector(self, session_id: str = SESSION) -> list[float] | None:
        """The rolling vector of a session, (d,) at unit length: the merge of all that was stored of it.

        Args:
            session_id: as in `Memory`.

        Returns:
            None for a session of which nothing was stored.

        Raises:
            StoreError: the database fails.
        """
        vector = await of_store(self.store, "root_vector", session_id).awaited()
        return None if vector is None else [float(value) for value in vector]

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """Drop whole lines, the oldest first, until about as many tokens are gone; None if all are."""
        lines = content.splitlines()
        gone = 0
        while lines and gone < tokens_to_truncate:
            gone += words(lines.pop(0)) or 1
        return "\n".join(lines) or None


def _text_of(message: ChatMessage) -> str:
    return "\n".join(block.text for block in message.blocks if isinstance(block, TextBlock)).strip()


def _question_of(message: ChatMessage) -> str:
    return _text_of(message) if message.role.value == "user" else ""


def _line(hit: Hit) -> str:
    return f"{hit.speaker}: {hit.text}" if hit.speaker else str(hit.text)


def _when(hit: Hit) -> tuple[str, int]:
    return hit.document_id or "", hit.position or 0
