"""Work that would keep an event loop waiting, done in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread of the loop's own, with the caller's context variables."""

    def call() -> R:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:  # a future cannot hold one, and would never be done
            raise RuntimeError(repr(error)) from error

    return await asyncio.to_thread(call)
