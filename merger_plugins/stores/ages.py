"""When turns were said, and how fast what was said fades."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import numpy as np

from merger_plugins.errors import InputError
from merger_plugins.stores.backend import Payload, Point

_MOST_SECONDS = 1e11


def seconds(time: object) -> float | None:
    """A turn's time in seconds since 1970; None where it has none that can be compared.

    Args:
        time: as a payload has it: seconds; milliseconds, beyond 10^11; or an ISO 8601 date and time, taken as
            UTC where it does not say.
    """
    if isinstance(time, int | float) and not isinstance(time, bool):
        return float(time) / (1000 if abs(time) > _MOST_SECONDS else 1)
    if not isinstance(time, str):
        return None
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def checked_pause(pause: float | timedelta) -> float:
    """A pause in seconds.

    Raises:
        InputError: it is not above 0.
    """
    length = pause.total_seconds() if isinstance(pause, timedelta) else pause
    if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
        raise InputError(f"pause is {pause!r}; it takes seconds or a timedelta above 0, infinity for none.")
    return float(length)


@dataclass(frozen=True)
class HalfLife:
    """The age at which half of a turn's mass is left.

    Attributes:
        length: in turns, or in seconds.
        timed: whether in seconds.
    """

    length: float
    timed: bool

    @classmethod
    def given(cls, half_life: float | timedelta | None) -> Self | None:
        """What a caller passed: a number of turns, or a time; None for none.

        Raises:
            InputError: it is not above 0, or not finite.
        """
        if half_life is None:
            return None
        timed = isinstance(half_life, timedelta)
        length: Any = half_life.total_seconds() if isinstance(half_life, timedelta) else half_life
        number = isinstance(length, int | float) and not isinstance(length, bool)
        if not number or not (np.isfinite(length) and length > 0):
            raise InputError(
                f"half_life is {half_life!r}; it takes a number of turns above 0, or a timedelta, or None."
            )
        return cls(float(length), timed)

    @classmethod
    def of(cls, stored: Payload | None) -> Self | None:
        """Read what `payload` gave."""
        return None if stored is None else cls(stored["length"], stored["timed"])

    def payload(self) -> Payload:
        """As JSON."""
        return {"length": self.length, "timed": self.timed}

    def __str__(self) -> str:
        return str(timedelta(seconds=self.length)) if self.timed else f"{self.length:g} turns"

    def moment(self, turn: Point) -> float:
        """When a turn was said: its place, or its time in seconds.

        Raises:
            InputError: it has no time.
        """
        if not self.timed:
            return float(turn.payload["position"])
        moment = seconds(turn.payload.get("time"))
        if moment is None:
            raise InputError(
                f"Turn {turn.payload['position']} of {turn.payload['document_id']!r} has the time "
                f"{turn.payload.get('time')!r}, and the masses of this store fade with time. Pass time= as "
                "seconds or as a date, or make a store whose half_life is a number of turns."
            )
        return moment
