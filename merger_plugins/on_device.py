"""Texts to merged vectors in the memory of one device, from which only merged vectors come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import as_masses
from merger_plugins._session import (
    DeviceArray,
    Session,
    SessionConfig,
    create_session,
    device_of,
    is_out_of_memory,
)
from merger_plugins._types import MassesLike, Matrix, Vector
from merger_plugins.embedders.minilm import MiniLMEmbedder, similar_lengths
from merger_plugins.errors import (
    ArtefactError,
    EmptyInputError,
    InputError,
    NoMemoryError,
    NonFiniteError,
    ProviderError,
)
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.onnx import OnnxMerger, _Graph

GATHER = Path(__file__).parent / "models" / "gather.onnx"

_CHUNKS_AT_ONCE = 65_536
"""Chunks whose vectors are on the device together, but for a longer document: 100 MB of 384 dimensions."""


class TextMerger:
    """Documents as texts of their chunks -> merged vectors, without a vector leaving the device in between.

    The vectors are those of ``merger.merge_many`` of the chunks' embeddings; where those are needed too, as
    for a store, embedding and merging one after the other costs no more. Threads may share one.

    Args:
        merger: an ONNX graph, such as ``load_merger("synthesizer-all-MiniLM-L6-v2")``; it must take the
            embedder's dimension.
        embedder: the bundled one; None for one with the merger's providers.

    Raises:
        InputError: the merger is no ONNX graph, or of another dimension; or the embedder is another one.
    """

    def __init__(self, merger: SequenceMerger, embedder: MiniLMEmbedder | None = None) -> None:
        if not isinstance(merger, OnnxMerger):
            raise InputError(
                f"{merger!r} is no ONNX graph, and only one can stay on a device. Export it first: "
                "OnnxMerger(merger.export(folder))."
            )
        config: SessionConfig = merger._session_config
        if embedder is None:
            embedder = MiniLMEmbedder(providers=config.providers, threads=config.threads)
        if not isinstance(embedder, MiniLMEmbedder):
            raise InputError(
                f"The embedder is {type(embedder).__name__}; only the bundled one, load_embedder(), leaves "
                "its vectors on a device. With another, embed the chunks and give the vectors to merge_many."
            )
        if merger.dimension != embedder.dimension:
            raise InputError(
                f"{merger!r} merges vectors of dimension {merger.dimension}, and the embedder's have "
                f"{embedder.dimension}. Take a merger that was made for {embedder.name}."
            )
        self.merger = merger
        self.embedder = embedder
        self._lock = threading.Lock()
        self._gather: Session | None = None

    def merge_many(
        self, documents: Sequence[Sequence[str]], *, masses: Sequence[MassesLike | None] | None = None
    ) -> Matrix:
        """Embed and merge.

        Args:
            documents: b of them, each the texts of its chunks in reading order.
            masses: b arrays (n_i,); None, or None in place of one, for the chunks' numbers of tokens.

        Returns:
            (b, d) float32, unit rows.

        Raises:
            InputError: there is nothing to merge, or something is no text.
            ProviderError: the embedder and the merger loaded on different devices.
            NoMemoryError: the device has no room for this many.
        """
        if isinstance(documents, str) or any(isinstance(one, str) for one in documents):
            raise InputError(
                "documents are lists of texts, one text a chunk, and a string arrived: pass [[text]]."
            )
        empty = [index for index, one in enumerate(documents) if not len(one)]
        if empty or not len(documents):
            what = f"documents[{empty[0]}]" if empty else "documents"
            raise EmptyInputError(f"{what} is empty; at least one text is needed.")
        if masses is not None and len(masses) != len(documents):
            raise InputError(
                f"{len(masses)} masses arrived for {len(documents)} documents; give each one, or None."
            )
        merged = np.empty((len(documents), self.embedder.dimension), np.float32)
        for part in _parts([len(one) for one in documents]):
            known = [None if masses is None else masses[index] for index in part]
            merged[part] = self._merged([documents[index] for index in part], known)
        return merged

    def _merged(self, documents: list[Sequence[str]], masses: list[MassesLike | None]) -> Matrix:
        encoded = [[self.embedder._encode(text) for text in one] for one in documents]
        weights = [
            np.maximum([len(ids) - 2 for ids in one], 1).astype(np.float32)
            if given is None
            else as_masses(given, len(one))
            for one, given in zip(encoded, masses, strict=True)
        ]
        graph, gather = self._sessions()
        plan = _Plan(weights, self.merger.window, self.merger._items_per_run)
        try:
            nodes = DeviceArray(plan.rows, self.embedder.dimension, graph.session)
            plan.place(self._embed([self.embedder._cut(ids) for one in encoded for ids in one], nodes))
            for merge in plan.merges:
                merge.run(gather, graph.session, nodes, graph.places)
            roots = _laid_out(gather, nodes, plan.roots[:, None], np.ones((len(documents), 1), np.bool_))
            merged: Matrix = roots.numpy()[:, 0]  # unit length, and zero or NaN where there is no direction
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            if is_out_of_memory(error):
                raise NoMemoryError(
                    f"The vectors of {plan.rows} chunks and nodes do not fit into the memory of the device: "
                    f"{error}. Give fewer documents at once, or use the CPU: "
                    "providers=('CPUExecutionProvider',)."
                ) from error
            raise ArtefactError(
                f"The graph of {self.merger.path} or the embedder's failed on {plan.rows} chunks and nodes: "
                f"{error}."
            ) from error
        sound = np.einsum("bd,bd->b", merged, merged) > 0
        if not sound.all():
            raise NonFiniteError(
                f"The graph of {self.merger.path} gives no direction for {int((~sound).sum())} of "
                f"{len(documents)} documents, such as one that begins with "
                f"{documents[int(np.argmin(sound))][0]!r:.80}."
            )
        return merged

    def _sessions(self) -> tuple[_Graph, Session]:
        """The merger's graph, and the one that lays vectors out for it, on the same device."""
        graph = self.merger._graph()
        merging, embedding = device_of(graph.session), device_of(self.embedder._opened())
        if merging != embedding:
            raise ProviderError(
                f"The merger runs on {merging} and the embedder on {embedding}: give both the same providers."
            )
        with self._lock:
            if self._gather is None:
                self._gather = create_session(GATHER, self.merger._session_config)
            return graph, self._gather

    def _embed(self, sequences: list[list[int]], nodes: DeviceArray) -> NDArray[np.int64]:
        """Fill the first rows with the sequences' vectors; gives (k,) the row of each."""
        places = np.empty(len(sequences), np.int64)
        start = 0
        for rows in self.embedder._groups(sequences):
            self.embedder._run_into([sequences[row] for row in rows], nodes, start)
            places[rows] = np.arange(start, start + len(rows))
            start += len(rows)
        return places


def _laid_out(gather: Session, nodes: DeviceArray, places: NDArray[np.int64], mask: NDArray[np.bool_]) -> Any:
    """Rows of `nodes` at (b, n) places -> (b, n, d) on the device, unit length; zero where not `mask`."""
    binding = gather.io_binding()
    nodes.bind(binding, "nodes")
    binding.bind_cpu_input("places", places)
    binding.bind_cpu_input("present", mask.astype(np.float32)[..., None])
    binding.bind_output("vectors", nodes.device)
    gather.run_with_iobinding(binding)
    return binding.get_outputs()[0]


@dataclass(frozen=True)
class _Merge:
    """One run of the graph.

    Attributes:
        places: (b, n) which rows are merged; any where padded.
        masses: (b, n) 0 where padded, 1 the largest of a sequence.
        into: first of the b rows of the results.
    """

    places: NDArray[np.int64]
    masses: NDArray[np.float32]
    into: int

    def run(self, gather: Session, graph: Session, nodes: DeviceArray, width: int | None) -> None:
        """Gather and merge, both on the device; `width` is how many vectors a graph of fixed size takes."""
        room = ((0, 0), (0, max((width or 0) - self.places.shape[1], 0)))
        places, masses = np.pad(self.places, room), np.pad(self.masses, room)
        mask = masses > 0
        merging = graph.io_binding()
        merging.bind_ortvalue_input("vectors", _laid_out(gather, nodes, places, mask))
        merging.bind_cpu_input("mask", mask)
        merging.bind_cpu_input("masses", masses)
        nodes.bind_rows(merging, "merged", self.into, len(places))
        graph.run_with_iobinding(merging)


class _Plan:
    """Which rows are merged when: chunks first, then what each run gives, level after level.

    Args:
        masses: (n_i,) of each document's chunks.
        window: vectors of one merge at the most; None for all of a document.
        items: vectors, padding included, of one run.

    Attributes:
        rows: chunks and results in all.
        merges: in their order.
        roots: (b,) the row of each document.
    """

    def __init__(self, masses: list[Vector], window: int | None, items: int) -> None:
        self.merges: list[_Merge] = []
        chunks = sum(map(len, masses))
        self.rows = self._chunks = chunks
        self.roots = np.empty(len(masses), np.int64)
        waiting: dict[int, tuple[NDArray[np.int64], Vector]] = {}
        start = 0
        for document, own in enumerate(masses):
            waiting[document] = (np.arange(start, start + len(own)), own)
            start += len(own)
        while waiting:
            groups = [
                (document, rows[at : at + size], own[at : at + size])
                for document, (rows, own) in waiting.items()
                for size in [window or len(rows)]
                for at in range(0, len(rows), size)
            ]
            # What is left over alone goes up as it is; a document of one chunk is merged all the same.
            merged = [len(rows) > 1 or len(waiting[document][0]) == 1 for document, rows, _ in groups]
            found = self._merge([group for group, go in zip(groups, merged, strict=True) if go], items)
            above: dict[int, tuple[list[int], list[float]]] = {}
            for (document, rows, own), go in zip(groups, merged, strict=True):
                places, sums = above.setdefault(document, ([], []))
                places.append(next(found) if go else int(rows[0]))
                sums.append(float(own.sum(dtype=np.float64)))
            waiting = {}
            for document, (places, sums) in above.items():
                if len(places) == 1:
                    self.roots[document] = places[0]
                else:
                    waiting[document] = (np.array(places), np.array(sums, np.float32))

    def _merge(self, groups: list[tuple[int, NDArray[np.int64], Vector]], items: int) -> Iterator[int]:
        """Plan the runs of a level; gives the row of each group's result."""
        results = np.empty(len(groups), np.int64)
        for chosen in similar_lengths([len(rows) for _, rows, _ in groups], items):
            shape = (len(chosen), max(len(groups[index][1]) for index in chosen))
            places, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
            for row, index in enumerate(chosen.tolist()):
                _, rows, own = groups[index]
                places[row, : len(rows)], weights[row, : len(rows)] = rows, own / own.max()
            self.merges.append(_Merge(places, weights, self.rows))
            results[chosen] = np.arange(self.rows, self.rows + len(chosen))
            self.rows += len(chosen)
        return iter(results.tolist())

    def place(self, rows: NDArray[np.int64]) -> None:
        """Say in which rows the chunks really are: embedded in another order than they were given."""
        moved = np.concatenate([rows, np.arange(self._chunks, self.rows)])
        self.merges = [replace(merge, places=moved[merge.places]) for merge in self.merges]


def _parts(lengths: list[int]) -> Iterator[list[int]]:
    """Documents that are on the device together."""
    part: list[int] = []
    held = 0
    for index, length in enumerate(lengths):
        if part and held + length > _CHUNKS_AT_ONCE:
            yield part
            part, held = [], 0
        part.append(index)
        held += length
    yield part
