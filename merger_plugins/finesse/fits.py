"""Mergers made once for each sample, however many levels and axes ask for them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np

from merger_plugins.finesse.rivals import EveryChunk, Fused, MakeMerger, Merging, QuerySide, Rival, Sample
from merger_plugins.mergers.base import SequenceMerger

SAMPLES = 6


class Fits:
    """The mergers that were made for the latest samples.

    Args:
        samples: how many of them are remembered.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples = samples
        self._made: OrderedDict[bytes, dict[int, tuple[MakeMerger, SequenceMerger]]] = OrderedDict()

    def remembering(self, rival: Rival) -> Rival:
        """The same rival, which makes no merger twice; one of another kind is given back as it is."""
        if not isinstance(rival, Merging | QuerySide | EveryChunk | Fused) or rival.make is None:
            return rival
        return replace(rival, make=partial(self._merger, rival.make))

    def _merger(self, make: MakeMerger, sample: Sample) -> SequenceMerger:
        digest = _digest(sample)
        made = self._made.setdefault(digest, {})
        self._made.move_to_end(digest)
        while len(self._made) > self._samples:
            self._made.popitem(last=False)
        if id(make) not in made:
            made[id(make)] = make, make(sample)  # kept beside it, the function keeps its id
        return made[id(make)][1]


def _digest(sample: Sample) -> bytes:
    """Over all sequences and where each one ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in sample:
        rows = np.ascontiguousarray(part)
        digest.update(f"{rows.dtype} {rows.shape}".encode())
        digest.update(rows.data)
    return digest.digest()
