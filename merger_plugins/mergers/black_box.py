"""What mergers share that merge by a model of which nothing is known but its inputs and its output."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import ITEMS_PER_BATCH, Batch, in_runs, unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import NonFiniteError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import ContextWeights

logger = logging.getLogger(__name__)

ITEMS_PER_RUN = 2_048
"""Vectors, padding included, that the model sees at once: more of them leave the processor's cache."""


class BlackBoxMerger(SequenceMerger):
    """Merges by a model, which sees unit vectors and masses over the largest of their sequence.

    With a window, the tree is made of the model's merges: every `window` nodes go through it as merged
    vectors with their summed masses, and reading the root takes what is left of each level upwards, so that
    no merge sees more than `window` vectors, and the model sees its own output again. Without a window, the
    model can take any number at once and is used once: nodes carry the exact sums Σ m_i x_i of the unit
    chunk vectors, and reading the root merges the means of the nodes that cover the sequence. A model with a
    calibration inside needs that: merging what it merged would calibrate twice.

    What the model makes of one vector is that chunk's own vector.

    Attributes:
        path: where the model came from.
    """

    path: Path
    _what = "graph"  # what errors call the model
    _lock: threading.Lock  # held while the model is loaded
    _loaded: Any  # the model, once it was used
    _items_per_run = ITEMS_PER_RUN  # a GPU takes more, and fewer once its memory has run out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_loaded")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _loaded=None)

    @abstractmethod
    def _call(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        """Vectors (b, n, d), mask and masses (b, n) with 1 as their largest -> (b, d) of any length.

        Raises:
            NoMemoryError: there is no room for so many at once.
        """

    def _run(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        """As `_call`, in runs of a moderate size -> (b, d) unit rows.

        Raises:
            NonFiniteError: the model gives NaN or infinity.
            NoMemoryError: a single sequence does not fit into memory.
        """
        places = vectors.shape[1]

        def halved(at_once: int) -> None:
            self._items_per_run = at_once * places
            logger.warning(
                "Memory ran out while %s merged: going on with %d sequences of %d vectors at once.",
                self.path,
                at_once,
                places,
            )

        merged = in_runs(
            len(vectors),
            max(1, self._items_per_run // places),
            lambda part: self._call(vectors[part], mask[part], masses[part]),
            halved,
        )
        squared = np.einsum("bd,bd->b", merged, merged)
        broken = ~np.isfinite(squared)
        if broken.any():
            raise NonFiniteError(
                f"The {self._what} of {self.path} gives NaN, infinity or numbers too large to square in "
                f"float32 for {int(broken.sum())} of {len(vectors)} sequences, and all of its inputs were "
                "finite. Export it again, in float32."
            )
        squared[squared == 0] = 1
        merged /= np.sqrt(squared)[:, None]
        return merged

    def _items_per_batch(self) -> int:
        return max(ITEMS_PER_BATCH, self._items_per_run)

    # -- what the tree needs ---------------------------------------------------------------------------

    def _merge_batch(self, batch: Batch) -> Matrix:
        return self._run(batch.vectors, batch.mask, batch.masses)

    def _leaves(self, vectors: Matrix) -> Matrix:
        return unit(vectors)

    def _join(self, nodes: Nodes) -> Matrix:
        if self.window is None:
            total: Matrix = nodes.vectors.sum(axis=1)
            return total
        present = nodes.masses > 0
        order = np.argsort(~present, axis=1, kind="stable")  # a graph may count on padding at the end
        vectors = unit(np.take_along_axis(nodes.vectors, order[..., None], axis=1))
        masses = np.take_along_axis(nodes.masses, order, axis=1)
        joined = vectors[:, 0].copy()
        several = present.sum(axis=1) > 1
        if several.any():
            largest = masses[several].max(axis=1, keepdims=True)
            joined[several] = self._run(vectors[several], masses[several] > 0, masses[several] / largest)
        joined *= masses.sum(axis=1, keepdims=True)
        return joined

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        if self.window is None:
            vectors = np.concatenate([nodes.vectors for nodes in frontier])
            masses = np.concatenate([nodes.masses for nodes in frontier])
            full = masses > 0
            relative = masses[full] / masses.max()
            merged: Vector = self._run(unit(vectors[full])[None], full[full][None], relative[None])[0]
            return merged
        carry: Nodes | None = None
        for level in reversed(frontier):
            nodes = level if carry is None else Nodes.concatenated([level, carry], level.vectors.shape[1])
            if len(nodes.masses):
                joined = self._join(Nodes(nodes.vectors[None], nodes.masses[None], nodes.counts[None]))
                carry = Nodes(joined, nodes.masses.sum(keepdims=True), nodes.counts.sum(keepdims=True))
        assert carry is not None  # a tree without nodes is never read
        # A node of one chunk is that chunk, as one node alone is never merged: the graph has not seen it.
        root: Vector = (self._own(unit(carry.vectors)) if carry.counts[0] == 1 else carry.vectors)[0]
        return root

    def _own(self, leaves: Matrix) -> Matrix:
        own = np.zeros_like(leaves)
        present = leaves.any(axis=1)
        if not present.any():
            return own
        alone = np.ones((int(present.sum()), 1), np.bool_)
        own[present] = self._run(leaves[present][:, None], alone, alone.astype(np.float32))
        return own

    def _out(self, directions: Matrix) -> Matrix:
        return unit(directions)

    def _contextual(
        self, leaves: Matrix, root: Vector, relative_masses: Vector, weights: ContextWeights | None
    ) -> Matrix:
        return super()._contextual(self._own(leaves), root, relative_masses, weights)
