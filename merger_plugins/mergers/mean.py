"""The mass-weighted mean: what most applications do today, and the baseline of every table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from merger_plugins._artefact import fingerprint_of, write_artefact
from merger_plugins._batching import Batch, unit
from merger_plugins._nodes import Nodes
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.context import ContextWeights

if TYPE_CHECKING:
    import os


class MeanMerger(SequenceMerger):
    """Merges by the mass-weighted mean of the unit vectors, normalised.

    Exactly associative: merging merged parts with their masses is merging the whole, and the tree's root is
    the flat mean. Works in any dimension and takes any number of vectors.
    """

    kind = "mean"
    context_weights = ContextWeights(near=0.1, root=0.0)

    def __init__(self) -> None:
        self.dimension = None
        self.window = None
        self.fingerprint = fingerprint_of({"kind": self.kind}, {})

    def __repr__(self) -> str:
        return "MeanMerger()"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a model folder that `load_merger` reads; returns the folder."""
        return write_artefact(folder, {"kind": self.kind}, {}).path

    def export(self, folder: str | os.PathLike[str], *, dimension: int | None = None) -> Path:
        """Write a model folder with an ONNX graph; returns the folder.

        Args:
            folder: where.
            dimension: the d to state in the folder. A graph has one; this merger has none of its own.

        Raises:
            InputError: no dimension.
            MissingExtraError: the package ``onnx`` is not installed.
        """
        from merger_plugins.mergers.graphs import mean_graph, write_onnx_merger

        if dimension is None:
            raise InputError("A mean works in any dimension, a graph in one: pass dimension=, such as 384.")
        return write_onnx_merger(folder, mean_graph(dimension), dimension=dimension, source=self)

    def _merge_batch(self, batch: Batch) -> Matrix:
        squared = np.einsum("bnd,bnd->bn", batch.vectors, batch.vectors)
        squared[~batch.mask] = 1
        weights = batch.masses / np.sqrt(squared)
        return unit((weights[:, None] @ batch.vectors)[:, 0])

    def _ready(self, vectors: Matrix) -> Matrix:
        return vectors

    def _leaves(self, vectors: Matrix) -> Matrix:
        return unit(vectors)

    def _join(self, nodes: Nodes) -> Matrix:
        joined: Matrix = nodes.vectors.sum(axis=1)
        return joined

    def _read(self, frontier: Sequence[Nodes]) -> Vector:
        total: Vector = np.concatenate([nodes.vectors for nodes in frontier]).sum(axis=0)
        return total

    def _out(self, directions: Matrix) -> Matrix:
        return unit(directions)
