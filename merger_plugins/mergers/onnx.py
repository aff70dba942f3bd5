"""Any merger that was exported as an ONNX graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import CARD, CONFIG, fingerprint_of, open_artefact, write_artefact
from merger_plugins._batching import unit
from merger_plugins._session import (
    CUDA,
    Session,
    SessionConfig,
    create_session,
    free_device_memory,
    is_out_of_memory,
    placement,
    refuse_outside_data,
    run,
)
from merger_plugins._types import Matrix, MatrixLike
from merger_plugins.errors import ArtefactError, FingerprintError, InputError, NoMemoryError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.black_box import ITEMS_PER_RUN, BlackBoxMerger
from merger_plugins.mergers.context import ContextWeights
from merger_plugins.mergers.graphs import MODEL

if TYPE_CHECKING:
    import os

    from merger_plugins.mergers.calibration import CalibrationStatistics

KIND = "onnx"
"""What config.json calls a model folder that an `OnnxMerger` reads."""

_INPUTS = {
    "vectors": ("tensor(float)", ("b", "n", "d")),
    "mask": ("tensor(bool)", ("b", "n")),
    "masses": ("tensor(float)", ("b", "n")),
}
_OUTPUTS = {"merged": ("tensor(float)", ("b", "d"))}
_SIGNATURE = (
    "A merger's graph takes vectors (b, n, d) float32, mask (b, n) bool and masses (b, n) float32, and gives "
    "merged (b, d) float32, with b dynamic. Export it again with that signature."
)


ITEMS_ON_DEVICE = 65_536
"""Vectors, padding included, that a GPU begins with where nobody tells how much memory it has free."""

_NUMBERS_KEPT = 64
"""Numbers that a graph may hold at once for every number of its input: our widest needs about so many."""


def items_for(free: int | None, dimension: int) -> int:
    """How many vectors, padding included, a GPU with so many free bytes begins with: half of what may fit."""
    if free is None:
        return ITEMS_ON_DEVICE
    return max(ITEMS_PER_RUN, free // 2 // (4 * dimension * _NUMBERS_KEPT))


@dataclass(frozen=True)
class _Graph:
    """A loaded graph: its session and what its shapes fix; None for what is dynamic."""

    session: Session
    dimension: int | None
    places: int | None


class OnnxMerger(BlackBoxMerger):
    """Merges by an ONNX graph: one that `SequenceMerger.export` wrote, or any with the same signature.

    The graph sees unit vectors, padded at the end, and masses over the largest of their sequence; its output
    is normalised. A folder whose config.json states ``"normalises": true``, as those that we export do,
    leaves it to the graph to make vectors of any length unit vectors. The tree is that of `BlackBoxMerger`.

    The session is created at the first merge, or here where only the graph tells the dimension. Copies and
    unpickled mergers create one of their own, from the same path. Threads may share a merger.

    Args:
        path: a model folder of kind ``"onnx"``, whose config.json states ``dimension``, ``window`` (null for
            any number) and optionally ``context_weights``, or an ONNX file, whose static shapes tell both.
        providers: ONNX Runtime's execution providers in order of preference, each of which must load; None
            for CUDA where it works, else the CPU.
        threads: CPU threads of one merge; None for the physical cores that this process may use, or for
            OMP_NUM_THREADS where that says fewer.

    Raises:
        ArtefactError: missing or damaged, another kind of folder, or a graph with another signature.
        InputError: `providers` or `threads` are out of range.
        ProviderError: a provider that was asked for did not load (at the first merge, for a folder).
        MissingExtraError: ONNX Runtime is not installed (likewise).
    """

    kind = KIND

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self._session_config = SessionConfig(providers=providers, threads=threads)
        self._lock = threading.Lock()
        self._loaded: _Graph | None = None
        config: dict[str, Any] = {"kind": KIND}
        if self.path.is_dir():
            artefact = open_artefact(self.path, kind=KIND)
            artefact.file(MODEL)
            config, self.fingerprint = artefact.config, artefact.fingerprint
        self.dimension = _natural(config, "dimension", 1, self.path)
        self.window = _natural(config, "window", 2, self.path)
        self.context_weights = _context_weights(config, self.path)
        self._normalises = config.get("normalises") is True
        if self.dimension is None or "window" not in config:
            self._loaded = self._load()
            self.dimension = self.dimension or self._loaded.dimension
            if "window" not in config:
                self.window = self._loaded.places
            self._check_sizes(self._loaded)
        self._lazy_carry = 0 if self.window else 2
        self._config = {**config, "dimension": self.dimension, "window": self.window}
        if not self.path.is_dir():
            self.fingerprint = fingerprint_of(*self._contents())

    def __repr__(self) -> str:
        return f"OnnxMerger({str(self.path)!r}, dimension={self.dimension}, window={self.window})"

    def calibrated(
        self,
        sample: MatrixLike | Iterable[MatrixLike] | CalibrationStatistics,  # noqa: ARG002
    ) -> SequenceMerger:
        """Refused: a graph holds its calibration, and nothing can be put in from outside.

        Raises:
            InputError: always, with what to do instead.
        """
        raise InputError(
            f"{self.path} is an ONNX graph, which cannot be calibrated from outside. Calibrate the merger "
            "that it was made from and export that again, or use the closed form in its place: "
            "load_merger().calibrated(sample), or CalibratedMerger(dimension=...).calibrated(sample) for an "
            "embedding model of which nothing is known."
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a model folder with the same files and fingerprint; returns the folder.

        Raises:
            ArtefactError: the folder exists and holds other files.
            FingerprintError: the files that this merger was loaded from were changed.
        """
        config, files = self._contents()
        self._check_fingerprint(fingerprint_of(config, files))
        return write_artefact(folder, config, files).path

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """The same as `save`: the graph is there already."""
        return self.save(folder)

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's execution providers that loaded, in order of preference; raises as a merge does."""
        return tuple(self._graph().session.get_providers())

    def placement(self) -> dict[str, int]:
        """How many operators of the graph each provider runs, found by merging two vectors under a profiler.

        Raises:
            ProviderError, MissingExtraError: as a merge.
        """
        graph = self._graph()
        shape = (1, graph.places or 2, self.dimension or 1)
        vectors = unit(np.ones(shape, np.float32))
        feed = {
            "vectors": vectors,
            "mask": np.ones(shape[:2], np.bool_),
            "masses": np.ones(shape[:2], np.float32),
        }
        return placement(self._model(), self._session_config, feed)

    # -- files and session -----------------------------------------------------------------------------

    def _contents(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The config and the files of the model folder that this merger is, or would be."""
        if not self.path.is_dir():
            beside = {
                PurePosixPath(name).as_posix(): (self.path.parent / name).read_bytes()
                for name in refuse_outside_data(self.path)
            }
            return self._config, {**beside, MODEL: self.path.read_bytes()}
        artefact = open_artefact(self.path, kind=KIND)
        names = [name for name in artefact.files if name != CONFIG]
        card = [CARD] if (self.path / CARD).is_file() else []
        return artefact.config, {name: (self.path / name).read_bytes() for name in [*names, *card]}

    def _check_fingerprint(self, found: str) -> None:
        if found != self.fingerprint:
            raise FingerprintError(
                f"{self.path} was changed: its fingerprint is {found}, and this merger was loaded with "
                f"{self.fingerprint}. Load it anew, and do not mix its vectors with those stored before."
            )

    def _graph(self) -> _Graph:
        with self._lock:
            if self._loaded is None:
                is_folder = self.path.is_dir()
                self._check_fingerprint(
                    open_artefact(self.path).fingerprint if is_folder else fingerprint_of(*self._contents())
                )
                loaded = self._load()
                self._check_sizes(loaded)
                self._loaded = loaded
            return self._loaded

    def _model(self) -> Path:
        return self.path / MODEL if self.path.is_dir() else self.path

    def _load(self) -> _Graph:
        session = create_session(self._model(), self._session_config)
        graph = _Graph(session, *_shapes(session, self._model()))
        on_device = session.get_providers()[0] == CUDA
        dimension = self.dimension or graph.dimension or 1
        self._items_per_run = items_for(free_device_memory(), dimension) if on_device else ITEMS_PER_RUN
        return graph

    def _items_per_batch(self) -> int:
        self._graph()  # which tells where it runs
        return super()._items_per_batch()

    def _check_sizes(self, graph: _Graph) -> None:
        too_wide = graph.places is not None and (self.window is None or self.window > graph.places)
        if too_wide or graph.dimension not in (None, self.dimension):
            raise ArtefactError(
                f"{self.path / CONFIG} states dimension {self.dimension} and window {self.window}, and its "
                f"graph has dimension {graph.dimension} and takes {graph.places} vectors. Export it again."
            )

    def _run(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        places, longest = self._graph().places, vectors.shape[1]
        if places is not None:
            if longest > places:
                raise InputError(
                    f"{longest} vectors are to be merged at once, and the graph takes {places}. "
                    "Merge them through the tree: rolling(strategy='tree')."
                )
            room = ((0, 0), (0, places - longest))
            vectors = np.pad(vectors, (*room, (0, 0)))
            mask, masses = np.pad(mask, room), np.pad(masses, room)
        return super()._run(vectors, mask, masses)

    def _call(
        self, vectors: NDArray[np.float32], mask: NDArray[np.bool_], masses: NDArray[np.float32]
    ) -> Matrix:
        try:
            feed = {"vectors": vectors, "mask": mask, "masses": masses}
            rows = run(self._graph().session, "merged", feed)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            if is_out_of_memory(error):
                raise NoMemoryError(
                    f"{len(vectors)} sequences of {vectors.shape[1]} vectors do not fit into memory with the "
                    f"graph of {self.path}: {error}. Free some, or run it on the CPU: "
                    "providers=('CPUExecutionProvider',)."
                ) from error
            raise ArtefactError(
                f"The graph of {self.path} failed on vectors of shape {vectors.shape}: {error}. " + _SIGNATURE
            ) from error
        expected = (len(vectors), vectors.shape[2])
        if rows.shape != expected:
            raise ArtefactError(
                f"The graph of {self.path} gives {rows.shape}, where {expected} was expected. " + _SIGNATURE
            )
        merged: Matrix = rows
        return merged

    def _ready(self, vectors: Matrix) -> Matrix:
        return vectors if self._normalises else unit(vectors)


def _shapes(session: Session, path: Path) -> tuple[int | None, int | None]:
    """What a graph's shapes fix of d and of n.

    Raises:
        ArtefactError: its signature is not that of a merger.
    """
    problems: list[str] = []
    fixed: dict[str, set[int]] = {"b": set(), "n": set(), "d": set()}
    for what, expected, values in (
        ("input", _INPUTS, session.get_inputs()),
        ("output", _OUTPUTS, session.get_outputs()),
    ):
        present = {value.name: value for value in values}
        for name, (kind, axes) in expected.items():
            if name not in present:
                problems.append(f"it has no {what} {name}")
                continue
            value = present[name]
            if value.type != kind:
                problems.append(f"{name} is a {value.type}, not a {kind}")
            if len(value.shape) != len(axes):
                problems.append(f"{name} has the shape {value.shape}, not ({', '.join(axes)})")
                continue
            for axis, size in zip(axes, value.shape, strict=True):
                if isinstance(size, int):
                    fixed[axis].add(size)
        if what == "input" and present.keys() - _INPUTS.keys():
            problems.append(f"it wants {', '.join(sorted(present.keys() - _INPUTS.keys()))} as well")
    if fixed["b"]:
        problems.append(f"its batch size is fixed to {fixed['b'].pop()}")
    if 1 in fixed["n"]:
        problems.append("it takes one vector only")
    problems += [
        f"its axis {axis} is both {min(fixed[axis])} and {max(fixed[axis])}"
        for axis in ("n", "d")
        if len(fixed[axis]) > 1
    ]
    if problems:
        raise ArtefactError(f"{path} is not the graph of a merger: {'; '.join(problems)}. {_SIGNATURE}")
    return next(iter(fixed["d"]), None), next(iter(fixed["n"]), None)


def _natural(config: dict[str, Any], name: str, least: int, path: Path) -> int | None:
    value = config.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ArtefactError(
            f"{path / CONFIG} states {name} {value!r}, where a number from {least} on or null is expected. "
            "Export it again."
        )
    return value


def _context_weights(config: dict[str, Any], path: Path) -> ContextWeights:
    stated = config.get("context_weights", {})
    try:
        return ContextWeights(**stated)
    except (TypeError, InputError) as error:
        raise ArtefactError(
            f"{path / CONFIG} states context_weights {stated!r}: {error}. Export it again."
        ) from error
