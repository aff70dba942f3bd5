"""Merges that are kept up to date: a tree over the sequence, of which one path changes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from merger_plugins import _state
from merger_plugins._batching import as_matrix, as_vector, unit
from merger_plugins._nodes import Level, Nodes
from merger_plugins._types import MassesLike, Matrix, MatrixLike, Vector, VectorLike
from merger_plugins.errors import EmptyInputError, InputError, StateError, ZeroVectorError
from merger_plugins.mergers.base import SequenceMerger, Strategy
from merger_plugins.mergers.context import REACH, ContextWeights, Renewal
from merger_plugins.tree.covering import frontier, runs
from merger_plugins.tree.masses import checked_masses


class RollingMerge:
    """The merged vector of a sequence that grows and changes.

    A tree whose leaves are the chunk vectors: every `fanout` complete nodes make one node of the level above.
    Appending makes 1 / (fanout - 1) nodes on average, replacing or removing changes one path, and reading
    merges the few nodes that cover the sequence. Extending by many equals appending one by one.

    A removed chunk leaves its place empty, and later chunks keep their places.

    Args:
        merger: makes the merges.
        strategy: ``"tree"``; ``"flat"`` merges all chunks at every reading, and ``"chain"`` merges the merged
            vector with each next chunk: both for comparison.
        history: whether to keep all nodes (4 d bytes a chunk and a ninth more, and as much again in reserve
            for growth). Without it, only what later appends and readings need is kept, and changing or
            listing older chunks is an error.
    """

    def __init__(self, merger: SequenceMerger, *, strategy: Strategy = "tree", history: bool = True) -> None:
        if strategy not in ("tree", "flat", "chain"):
            raise InputError(f"strategy is {strategy!r}; choose 'tree', 'flat' or 'chain'.")
        self.merger = merger
        self.strategy = strategy
        self.history = history
        self._levels: list[Level] = []
        self._chain: Nodes | None = None
        self._stale: set[int] = set()
        self._renewal: Renewal | None = None

    def __len__(self) -> int:
        """How many chunks it holds; empty places do not count."""
        return int(sum(nodes.counts.sum() for nodes in self._frontier()))

    def __repr__(self) -> str:
        return f"RollingMerge({len(self)} chunks, strategy={self.strategy!r}, merger={self.merger!r})"

    @property
    def places(self) -> int:
        """How many places there are, empty ones included; the next chunk goes to this place."""
        return self._levels[0].stop if self._levels else 0

    @property
    def mass(self) -> float:
        """The mass of all chunks, in tokens."""
        return float(sum(nodes.masses.sum(dtype=np.float64) for nodes in self._frontier()))

    @property
    def vector(self) -> Vector:
        """(d,) the root: the merged vector of all chunks, unit length.

        Raises:
            EmptyInputError: there is no chunk.
            ZeroVectorError: the chunks cancel out.
        """
        root: Vector = self.merger._out(self._root_direction()[None])[0]
        if not root.any():
            raise ZeroVectorError(
                f"The {len(self)} chunks merge to a vector of length zero: they cancel out. Vectors of one "
                "embedding model never do; check where they came from."
            )
        return root

    def append(self, vector: VectorLike, *, mass: float = 1.0) -> None:
        """Add one chunk vector (d,) at the end; raises as `extend`."""
        self.extend(as_vector(vector, self._dimension)[None], masses=[mass])

    def extend(self, vectors: MatrixLike, *, masses: MassesLike | None = None) -> None:
        """Add chunk vectors (n, d) at the end, in reading order.

        Raises:
            InputError: as `SequenceMerger.merge`, or a mass below `LEAST_MASS` or above `MOST_MASS`; nothing
                was added.
        """
        array = as_matrix(vectors, self._dimension)
        mass = checked_masses(masses, len(array))
        self._extend_leaves(self.merger._leaves(array), mass)

    def _extend_leaves(self, directions: Matrix, mass: Vector) -> None:
        """Add leaves at the end, as a merger's `_leaves` gives them; one of mass 0 is an empty place."""
        leaves = Nodes(directions * mass[:, None], mass, (mass > 0).astype(np.int64))
        if not self._levels:
            self._levels = [Level.empty(directions.shape[1])]
        start = self.places
        self._levels[0].append(leaves)
        self._stale.update(range(max(start - REACH, 0), self.places))
        if self.strategy == "tree":
            self._grow()
        elif self.strategy == "chain":
            self._advance(leaves)
        if not self.history:
            self._trim()

    def replace(self, place: int, vector: VectorLike, *, mass: float | None = None) -> None:
        """Put another chunk vector at a place, which may be empty; its mass stays unless one is given.

        Raises:
            InputError: there is no such place, or an empty one and no mass; or as `extend`.
            StateError: the place is no longer kept.
        """
        array = as_vector(vector, self._dimension)
        leaf = self._leaf(place)
        if mass is None:
            if not leaf.counts[0]:
                raise InputError(f"place {place} is empty, so it has no mass to keep: pass mass=.")
            mass = float(leaf.masses[0])
        weight = checked_masses([mass], 1)
        directions = self.merger._leaves(array[None])
        self._set(place, Nodes(directions * weight[:, None], weight, np.ones(1, np.int64)))

    def remove(self, place: int) -> None:
        """Empty a place; later chunks keep their places.

        Raises:
            InputError: there is no such place, or it is empty.
            StateError: the place is no longer kept.
        """
        leaf = self._leaf(place)
        if not leaf.counts[0]:
            raise InputError(f"place {place} is empty already.")
        self._set(place, Nodes(np.zeros_like(leaf.vectors), np.zeros(1, np.float32), np.zeros(1, np.int64)))

    def sections(self, level: int = 1) -> Matrix:
        """The section vectors of a level, in reading order.

        Args:
            level: 1 merges `fanout` chunks each, 2 merges `fanout` sections of level 1, and so on; 0 gives
                each chunk's own vector, calibrated where the merger is.

        Returns:
            (s, d) float32, unit rows; the last section may be shorter. Row i covers the places
            i * fanout**level onwards. A section that holds one section of the level below is that
            section; one whose places are all empty is a row of zeros.

        Raises:
            InputError: a negative level.
            StateError: the nodes are no longer kept.
        """
        return self.section_range(level, 0)

    def section_range(self, level: int, start: int, stop: int | None = None) -> Matrix:
        """Sections start up to stop (the end for None) of a level, as `sections`.

        Raises:
            InputError: a negative level, or sections that do not exist.
            StateError: the nodes are no longer kept.
        """
        if level < 0:
            raise InputError(f"level is {level}; chunks are level 0 and sections begin at 1.")
        last = -(-self.places // self.merger.fanout**level)
        stop = last if stop is None else stop
        if not 0 <= start <= stop <= last:
            raise InputError(
                f"Sections {start} to {stop} of level {level} do not exist: {self.places} places make {last}."
            )
        if start == stop:
            return np.zeros((0, self._dimension or 0), np.float32)
        if level == 0:
            return self.merger._own(unit(self._levels[0].view(start, stop).vectors))
        return self.merger._out(np.stack([self._section(level, index) for index in range(start, stop)]))

    def contextual(self, weights: ContextWeights | None = None) -> Matrix:
        """The contextual chunk vectors of all places, (n, d), unit rows; an empty place is a row of zeros.

        Raises:
            EmptyInputError: there is no chunk.
            StateError: the chunks are no longer kept.
        """
        return self._contextual(0, self.places, weights)

    def refresh_context(self, weights: ContextWeights | None = None) -> tuple[NDArray[np.int64], Matrix]:
        """The contextual chunk vectors that changed enough to matter since the last call.

        A chunk is due when it or a chunk at most two places away was added, replaced or removed. Every chunk
        is due when, against the last time that every chunk was, the root's cosine is below 1 - `ROOT_DRIFT`,
        the mean mass has changed by a factor of `MASS_DRIFT`, or the weights are others. Measured on papers
        that grew chunk by chunk, what is left alone stays within a cosine of 0.999 of a fresh one, and of
        0.998 with `TURN_WEIGHTS`.

        Returns:
            places: (k,) int64, ascending, empty places left out.
            vectors: (k, d) float32, unit rows.

        Raises:
            EmptyInputError: there is no chunk.
            StateError: the chunks are no longer kept.
        """
        now = Renewal(
            root=unit(self._root_direction()[None])[0],
            mean_mass=self.mass / len(self),
            weights=weights or self.merger.context_weights,
        )
        everything = self._renewal is None or self._renewal.outdated(now)
        spans = [(0, self.places)] if everything else runs(sorted(self._stale))
        places = np.concatenate([np.arange(*span) for span in spans]) if spans else np.zeros(0, np.int64)
        parts = [self._contextual(start, stop, weights) for start, stop in spans]
        vectors = np.concatenate(parts) if parts else np.zeros((0, len(now.root)), np.float32)
        full = np.einsum("nd,nd->n", vectors, vectors) > 0
        self._stale.clear()
        if everything:
            self._renewal = now
        return places[full], vectors[full]

    @property
    def state(self) -> bytes:
        """What later appends and readings need, without the history: resume with `merger.rolling(state)`.

        At most three times `fanout` nodes a level, 4 d bytes each; with the strategy ``"flat"``, all chunks.
        """
        return self._saved(compact=False)

    @property
    def compact_state(self) -> bytes:
        """As `state`, in three eighths of the space: below 64 kB at 384 dimensions and a million turns.

        Numbers are rounded to 12 bits. The root of what is resumed from it has a cosine of more than
        1 - 1e-6 with this one (3e-7 was the most on papers of 13,000 chunks), and not the same last digits.
        """
        return self._saved(compact=True)

    def _saved(self, *, compact: bool) -> bytes:
        levels = [
            (start, self._chain or level.view(start, stop))
            for level, (start, stop) in zip(self._levels, self._ranges(), strict=False)
        ]
        return _state.dump(
            fingerprint=self.merger.fingerprint,
            strategy=self.strategy,
            fanout=self.merger.fanout,
            places=self.places,
            levels=levels,
            compact=compact,
        )

    @classmethod
    def from_state(cls, merger: SequenceMerger, state: bytes, *, strategy: Strategy = "tree") -> RollingMerge:
        """Resume from `state` or `compact_state`, without the history.

        Raises:
            StateError: the state is damaged, of a newer version, another strategy, fan-out or merger.
        """
        saved = _state.load(state, fingerprint=merger.fingerprint, strategy=strategy, fanout=merger.fanout)
        return cls.from_nodes(merger, saved.levels, saved.places, strategy=strategy)

    @classmethod
    def from_nodes(
        cls,
        merger: SequenceMerger,
        levels: Sequence[tuple[int, Nodes]],
        places: int,
        *,
        strategy: Strategy = "tree",
    ) -> RollingMerge:
        """Resume from the nodes that cover a sequence, such as stored ones.

        Args:
            merger: the merger that made them.
            levels: (index of the first node, nodes) of each level, lowest first, as `frontier` lists them.
            places: how many places the sequence has.
            strategy: how they were made.

        Raises:
            StateError: these nodes do not cover that many places.
        """
        rolling = cls(merger, strategy=strategy, history=strategy == "flat")
        rolling._levels = [Level(nodes.copy(), first) for first, nodes in levels]
        ranges = rolling._ranges_for(places) if places > 0 else []
        if [(level.first, level.stop) for level in rolling._levels] != ranges:
            raise StateError(
                f"The nodes cover {[(level.first, level.stop) for level in rolling._levels]} level by level; "
                f"{places} places need {ranges}. Build it again from the stored vectors."
            )
        if strategy == "chain" and places:
            rolling._chain = rolling._levels[0].view(places - 1, places)
            rolling._levels = [Level.empty(rolling._chain.vectors.shape[1], first=places)]
        elif strategy == "tree" and places:
            rolling._grow()
        return rolling

    def nodes(self, level: int, start: int, stop: int) -> Nodes:
        """Copies of complete nodes of a level, to be stored.

        Raises:
            InputError: there are no such nodes.
            StateError: they are no longer kept.
        """
        if not 0 <= level < len(self._levels):
            raise InputError(f"level is {level}; complete nodes are in {len(self._levels)} levels, from 0.")
        return self._levels[level].view(start, stop).copy()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _dimension(self) -> int | None:
        if self._levels:
            return int(self._levels[0].view(self.places, self.places).vectors.shape[1])
        return self.merger.dimension

    def _ranges_for(self, places: int) -> list[tuple[int, int]]:
        if self.strategy == "flat":
            return [(0, places)]
        if self.strategy == "chain":
            return [(places - 1, places)]
        return frontier(places, self.merger.fanout, lazy=self.merger._lazy_carry)

    def _ranges(self) -> list[tuple[int, int]]:
        return self._ranges_for(self.places) if self.places else []

    def _frontier(self) -> list[Nodes]:
        """The nodes that cover the sequence, highest level first."""
        if self._chain is not None:
            return [self._chain]
        covering = [self._levels[level].view(*span) for level, span in enumerate(self._ranges())]
        return covering[::-1]

    def _root_direction(self) -> Vector:
        covering = self._frontier()
        if not any(nodes.counts.any() for nodes in covering):
            raise EmptyInputError("This rolling merge holds no chunk; append one first.")
        if self._chain is not None and self._chain.counts[0] > 1:
            merged: Vector = self._chain.vectors[0]
            return merged
        return self.merger._read(covering)

    def _grow(self) -> None:
        """Join every group of complete nodes that has no parent yet."""
        fanout = self.merger.fanout
        level = 0
        while self._levels[level].stop >= fanout:
            if level + 1 == len(self._levels):
                self._levels.append(Level.empty(self._dimension or 0))
            parents, children = self._levels[level + 1], self._levels[level]
            missing = children.stop // fanout - parents.stop
            if missing <= 0:
                break
            group = children.view(parents.stop * fanout, (parents.stop + missing) * fanout)
            parents.append(self._joined(group, missing))
            level += 1

    def _joined(self, nodes: Nodes, groups: int) -> Nodes:
        grouped = Nodes(
            nodes.vectors.reshape(groups, -1, nodes.vectors.shape[1]),
            nodes.masses.reshape(groups, -1),
            nodes.counts.reshape(groups, -1),
        )
        return Nodes(self.merger._join(grouped), grouped.masses.sum(axis=1), grouped.counts.sum(axis=1))

    def _advance(self, leaves: Nodes) -> None:
        for index in range(len(leaves.masses)):
            one = slice(index, index + 1)
            following = Nodes(leaves.vectors[one], leaves.masses[one], leaves.counts[one]).copy()
            if not following.counts[0]:
                continue
            if self._chain is None or not self._chain.counts[0]:
                self._chain = following
                continue
            both = Nodes.concatenated([self._chain, following], following.vectors.shape[1])
            pair = replace(both, counts=np.ones(2, np.int64))  # each is one vector to be merged
            mass = pair.masses.sum(keepdims=True)
            self._chain = Nodes(
                unit(self.merger._read([pair])[None]) * mass,
                mass,
                self._chain.counts + following.counts,
            )

    def _trim(self) -> None:
        for level, (start, _) in zip(self._levels, self._ranges(), strict=False):
            level.drop(start)
        gone = [place for place in self._stale if place < self._levels[0].first]
        if gone:  # one of them is enough for `refresh_context` to say that it cannot
            self._stale.difference_update(gone)
            self._stale.add(self._levels[0].first - 1)

    def _leaf(self, place: int) -> Nodes:
        if not 0 <= place < self.places:
            raise InputError(f"place {place} does not exist; there are {self.places}, counted from 0.")
        return self._levels[0].view(place, place + 1)

    def _set(self, place: int, leaf: Nodes) -> None:
        def put(level: int, index: int, node: Nodes) -> None:
            old = self._levels[level].view(index, index + 1)
            old.vectors[:], old.masses[:], old.counts[:] = node.vectors, node.masses, node.counts

        if self.strategy == "chain" and not self.history:
            raise StateError("A chain without history cannot change a chunk: build it again.")
        put(0, place, leaf)
        self._stale.update(range(max(place - REACH, 0), min(place + REACH + 1, self.places)))
        if self.strategy == "chain":
            self._chain = None
            self._advance(self._levels[0].view(0, self.places))
        elif self.strategy == "tree":
            fanout, index = self.merger.fanout, place
            for level in range(len(self._levels) - 1):
                index //= fanout
                if index >= self._levels[level + 1].stop or index < self._levels[level + 1].first:
                    break
                children = self._levels[level].view(index * fanout, (index + 1) * fanout)
                put(level + 1, index, self._joined(children, 1))

    def _section(self, level: int, index: int) -> Vector:
        fanout = self.merger.fanout
        while level > 1 and self.places - index * fanout**level <= fanout ** (level - 1):
            level, index = level - 1, index * fanout
        nodes = self._children(level, index)
        if not nodes.counts.any():
            return np.zeros(nodes.vectors.shape[1], np.float32)
        return self.merger._read([nodes])

    def _children(self, level: int, index: int) -> Nodes:
        """The nodes below section `index` of a level; an incomplete one of them is joined for the purpose."""
        fanout = self.merger.fanout
        below = level - 1
        start = index * fanout
        held = self._levels[below].stop if below < len(self._levels) else 0
        stop = min(start + fanout, -(-self.places // fanout**below))
        parts = [self._levels[below].view(start, min(stop, held))] if min(stop, held) > start else []
        for child in range(max(start, held), stop):
            parts.append(self._joined(self._children(below, child), 1))
        return Nodes.concatenated(parts, self._dimension or 0)

    def _contextual(self, start: int, stop: int, weights: ContextWeights | None) -> Matrix:
        low, high = max(start - REACH, 0), min(stop + REACH, self.places)
        leaves = self._levels[0].view(low, high)
        root = self._root_direction()
        relative = leaves.masses / np.float32(self.mass / len(self))
        vectors = self.merger._contextual(unit(leaves.vectors), root, relative, weights)
        vectors[leaves.counts == 0] = 0
        return vectors[start - low : stop - low]
