"""Calling a hook, plain or asynchronous."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables.config import run_in_executor

from merger_plugins.errors import InputError
from merger_plugins.stores.asynchronous import AsyncMergedStore
from merger_plugins.stores.store import MergedStore


def plain(hook: MergedStore | AsyncMergedStore, instead: str) -> MergedStore:
    """A hook that answers without being awaited.

    Args:
        hook: any.
        instead: what to call on an asynchronous one.

    Raises:
        InputError: it is asynchronous.
    """
    if isinstance(hook, AsyncMergedStore):
        raise InputError(
            f"{hook!r} answers coroutines alone: call {instead}, or give it a plain QdrantStore."
        )
    return hook


async def called(hook: MergedStore | AsyncMergedStore, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a hook, awaited; a plain store works in a thread."""
    method = getattr(hook, name)
    if isinstance(hook, AsyncMergedStore):
        return await method(*args, **kwargs)
    return await run_in_executor(None, lambda: method(*args, **kwargs))


async def embedded(hook: MergedStore | AsyncMergedStore, query: str) -> list[float] | None:
    """A query's vector by the embedder's own coroutine; None where it has none, and for no text."""
    if isinstance(hook, AsyncMergedStore):
        embedder = await hook.embedder()
    else:
        embedder = await run_in_executor(None, lambda: hook.embedder)
    method = getattr(getattr(embedder, "source", embedder), "aembed_query", None)
    if not callable(method) or not query.strip():
        return None
    vector: list[float] = await method(query)
    return vector
