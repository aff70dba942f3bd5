"""Sittings: what of a conversation was said without a long pause.

A contextual turn vector takes its root from its sitting, so that a turn of last week does not colour one of
today. A sitting has at most `LONGEST` turns; what goes on longer, and a conversation without times, is cut
into several. Which one a turn belongs to is decided when it is appended and stored with it, like its time:
the first place of the sitting. Everything else follows from the stored turns of the sitting alone, whoever
works it out, and however the conversation came to be what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from merger_plugins.stores.ages import seconds
from merger_plugins.stores.backend import Payload, Point

PAUSE = 3600.0
"""Seconds without a turn after which the next one begins a sitting."""

LONGEST = 30
"""Turns of a sitting at the most."""

SITTING = "sitting"
"""The payload key of the first place of a turn's sitting."""

LAST = "last"
"""The payload key under which a root keeps what the next turn's sitting depends on."""


@dataclass(frozen=True)
class Last:
    """What the sitting of the next turn depends on.

    Attributes:
        sitting: first place of the last turn's sitting.
        time: seconds of the last turn that tells them; None where none does.
    """

    sitting: int
    time: float | None

    @classmethod
    def of(cls, root: Payload) -> Self | None:
        """As a root's payload has it; None for one that has none."""
        stored = root.get(LAST)
        return None if stored is None else cls(stored[SITTING], stored["time"])

    @classmethod
    def among(cls, payloads: Iterable[Payload], before: Self | None = None) -> Self | None:
        """What these turns leave, after what there was before."""
        last = before
        for payload in payloads:
            if SITTING in payload:
                time = seconds(payload.get("time"))
                last = cls(payload[SITTING], time if time is not None or last is None else last.time)
        return last

    def payload(self) -> Payload:
        """As `of` reads it."""
        return {SITTING: self.sitting, "time": self.time}

    def next(self, place: int, time: float | None, pause: float) -> int:
        """The sitting of the turn at this place, said at that time."""
        paused = time is not None and self.time is not None and abs(time - self.time) > pause
        return place if paused or place - self.sitting >= LONGEST else self.sitting


def seated(turns: Sequence[Point], last: Last | None, pause: float) -> list[Point]:
    """New turns with their sittings in the payload.

    Args:
        turns: chunk points in reading order.
        last: of the conversation before.
        pause: seconds.
    """
    points = []
    for turn in turns:
        place = turn.payload["position"]
        time = seconds(turn.payload.get("time"))
        sitting = place if last is None else last.next(place, time, pause)
        points.append(replace(turn, payload={**turn.payload, SITTING: sitting}))
        last = Last.among([points[-1].payload], last)
    return points


def sitting_of(turn: Point) -> int:
    """The first place of a turn's sitting; a turn that does not tell belongs to the 30 it is among."""
    place: int = turn.payload["position"]
    sitting: int = turn.payload.get(SITTING, place - place % LONGEST)
    return sitting


def sitting_at(place: int, before: Point | None, after: Point | None) -> int:
    """The sitting of an empty place.

    Args:
        place: it.
        before: the last turn before it; None where there is none.
        after: the first turn after it.
    """
    if after is not None and sitting_of(after) <= place:
        return sitting_of(after)
    if before is None:
        return place
    start = sitting_of(before)
    return start + (place - start) // LONGEST * LONGEST
