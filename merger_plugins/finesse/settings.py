"""What a run of FINESSE measures, and which probes each sample gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import InputError

Indices = NDArray[np.intp]
"""Numbers of probes, in reading order."""


@dataclass(frozen=True)
class FinesseSettings:
    """What is measured.

    Every sample is a sequence of different probes, drawn by seed, length and number of probes alone, so
    that all mergers see the same ones. Samples of one length share no probe, where a run of the public
    package uses a probe only once in all lengths: scores of different lengths are not independent here.

    Attributes:
        lengths: chunks in a sequence, each at least 3.
        samples: sequences of each length.
        timed: how many of them are embedded and merged again, one at a time, for the latency.
        order_lengths: chunks in the sequences that measure order, each at least 3; empty for none.
        order_samples: probe sequences of each such length.
        order_group: other sequences that each probe is put into; 50 in the public package.
        seed: of the draw of the samples.
    """

    lengths: tuple[int, ...] = (4, 8, 16, 32, 64)
    samples: int = 25
    timed: int = 3
    order_lengths: tuple[int, ...] = (4, 8, 16)
    order_samples: int = 5
    order_group: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        object.__setattr__(self, "order_lengths", tuple(sorted(set(self.order_lengths))))
        if not (self.lengths or self.order_lengths) or min(self.lengths + self.order_lengths) < 3:
            raise InputError(
                f"lengths are {self.lengths} and order_lengths {self.order_lengths}; at least one is needed, "
                "and each is at least 3 chunks."
            )
        if min(self.samples, self.order_samples, self.order_group) < 1 or self.timed < 0 or self.seed < 0:
            raise InputError(
                f"samples is {self.samples}, order_samples {self.order_samples}, order_group "
                f"{self.order_group}, timed {self.timed} and seed {self.seed}; the first three are at least "
                "1, the others at least 0."
            )

    @property
    def probes(self) -> int:
        """How many probes a run needs."""
        needed = [length * self.samples for length in self.lengths]
        needed += [self._order_probes(length) * self.order_samples for length in self.order_lengths]
        return max(needed)

    def draw(self, probes: int, length: int) -> list[Indices]:
        """The samples of one length: numbers of probes, (length,) each."""
        lots = np.random.default_rng([self.seed, 0, length]).permutation(probes)
        return [lots[sample * length : (sample + 1) * length] for sample in range(self.samples)]

    def draw_order(self, probes: int, length: int) -> list[tuple[Indices, Indices]]:
        """The samples of one length: a probe sequence (length - 1,) and contexts (group, length - 2)."""
        lots = np.random.default_rng([self.seed, 1, length]).permutation(probes)
        drawn = np.split(lots[: self._order_probes(length) * self.order_samples], self.order_samples)
        return [(row[: length - 1], row[length - 1 :].reshape(self.order_group, -1)) for row in drawn]

    def _order_probes(self, length: int) -> int:
        return length - 1 + self.order_group * (length - 2)
