"""What mergers are compared with, by name: other mergers, and other ways to search the same collection.

A new merger takes part with one call::

    register(Merging("mine", "what it does", lambda sample: MyMerger().calibrated(sample)))

``sample`` is a list of the collection's sequences, (n_i, d) each; a merger that needs none ignores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._types import Matrix
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.errors import InputError
from merger_plugins.finesse.collections import (
    Collection,
    Ints,
    Level,
    Units,
    best_of_group,
    by_group,
    unit_texts,
    units,
)
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.pooling import (
    RisingMerger,
    RolledMerger,
    centred_mean,
    first_and_mean,
    max_pooling,
    unweighted_mean,
    whitened_mean,
)
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.loading import SYNTHESIZER, bundled, load_merger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.stores import FusionWeights

Sample = Sequence[Matrix]
MakeMerger = Callable[[Sample], SequenceMerger]

BASELINE: Final = "mean"
"""The name of the rival that all others are compared with: what applications do today."""

TRUNCATION: Final = "truncation"
"""The name of the base embedder on the text itself."""

LIMIT: Final = "limit, orthogonal chunks"
OWN_LIMIT: Final = "limit, these chunks"


@dataclass(frozen=True, eq=False)
class Stored:
    """What a rival stores, and what searches it.

    Attributes:
        vectors: (r, d).
        target: (r,) what is found when a row is found, ascending.
        queries: (q, d).
        beside: vectors that are stored beside these, whose part in the scores is in these already.
    """

    vectors: Matrix
    target: Ints
    queries: Matrix
    beside: int = 0

    def scores(self, targets: int) -> Matrix:
        """(q, targets): the cosine of each target's best row, where rows have unit length."""
        return best_of_group(self.queries @ self.vectors.T, self.target, targets)


class Rival(ABC):
    """One row of every table.

    Attributes:
        name: its row.
        about: what it does, in a few words.
        dimension: the only one that it works in; None for any.
        model: the bundled model that it takes; None for none.
    """

    name: str
    about: str
    dimension: int | None = None
    model: str | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot take part here; None where it can."""
        if self.model is None or bundled(self.model).is_dir():
            return None
        return f"the model {self.model} is not part of this installation"

    def unfit(self, dimension: int, *, ours: bool) -> str | None:
        """Why it takes no part in a run unless somebody names it; None where it does.

        Args:
            dimension: of the base embedder's vectors.
            ours: whether that is the bundled embedder, for which bundled models are.
        """
        if self.dimension not in (dimension, None):
            return f"it works in dimension {self.dimension}, and the embedder gives {dimension}"
        if self.model is not None and not ours:
            return f"it was trained for {MiniLMEmbedder.name}, and the embedder is another one"
        return self.missing

    def merger(self, sample: Sample) -> SequenceMerger | None:
        """Its merger, for a collection of these sequences; None for a rival that does not merge."""
        del sample
        return None

    @abstractmethod
    def stored(self, collection: Collection, cut: Units) -> Stored | None:
        """What it stores of a collection, so that `cut`'s targets are found; None where it cannot.

        Raises:
            InputError: its merger has another dimension than the collection; otherwise as `merge`.
        """


@dataclass(frozen=True)
class Merging(Rival):
    """Stores one merged vector a unit.

    Attributes:
        make: gives the merger for a collection's sequences.
        around: what is put around the merger that was made; None for nothing.
    """

    name: str
    about: str
    make: MakeMerger
    model: str | None = None
    dimension: int | None = None
    around: Callable[[SequenceMerger], SequenceMerger] | None = None

    def merger(self, sample: Sample) -> SequenceMerger:
        """The merger, calibrated where it is one that is."""
        merger = self.make(sample)
        return merger if self.around is None else self.around(merger)

    def stored(self, collection: Collection, cut: Units) -> Stored:
        """A vector a unit."""
        merger = self.merger(collection.sequences())
        return Stored(_merged(merger, collection, cut), cut.target, collection.queries)


@dataclass(frozen=True)
class QuerySide(Rival):
    """The mean is stored as it is, and every query is mapped: q S⁻¹, S the collection's covariance.

    Attributes:
        make: gives the calibrated merger that knows the covariance.
    """

    name: str
    about: str
    make: MakeMerger

    def stored(self, collection: Collection, cut: Units) -> Stored:
        """The mean's vectors, and mapped queries."""
        merger = self.make(collection.sequences())
        assert isinstance(merger, CalibratedMerger)
        whitening = merger.calibration.whitening
        mean = Merging(self.name, self.about, lambda _sample: MeanMerger()).stored(collection, cut)
        mapped = (collection.queries @ (whitening @ whitening)).astype(np.float32)
        return Stored(mean.vectors, mean.target, unit(mapped))


@dataclass(frozen=True)
class EveryChunk(Rival):
    """Stores a vector a chunk; a unit is as good as its best one (MaxSim).

    Attributes:
        make: gives a merger whose own vector of each chunk is stored; None stores raw ones.
        contextual: whether its contextual chunk vectors are.
    """

    name: str
    about: str
    make: MakeMerger | None = None
    contextual: bool = False

    def stored(self, collection: Collection, cut: Units) -> Stored:
        """A vector a chunk."""
        if self.make is None:
            return Stored(unit(collection.chunks), cut.chunk_target, collection.queries)
        merger = self.make(collection.sequences())
        if self.contextual:
            pairs = zip(collection.sequences(), collection.sequence_masses(), strict=True)
            own = np.concatenate([merger.contextualize(part, masses=mass) for part, mass in pairs])
        else:
            own = merger.merge_many(list(collection.chunks[:, None]))
        return Stored(own, cut.chunk_target, collection.queries)


@dataclass(frozen=True)
class Fused(Rival):
    """Stores chunks, sections and roots; a chunk brings its section and its root along, as stores fuse them.

    A fused score is a weighted sum of cosines with one query, which is the product of the query with the
    weighted sum of the three vectors.

    Attributes:
        make: gives the merger of all three.
        weights: of the three.
    """

    name: str
    about: str
    make: MakeMerger
    weights: FusionWeights = field(default_factory=FusionWeights)

    def stored(self, collection: Collection, cut: Units) -> Stored:
        """A weighted sum a chunk, and as many vectors beside as there are sections and roots."""
        merger = self.make(collection.sequences())
        total = self.weights.chunk * merger.merge_many(list(collection.chunks[:, None]))
        beside = 0
        above: tuple[tuple[Level, float], ...] = (
            ("sections", self.weights.section),
            ("documents", self.weights.root),
        )
        for level, weight in above:
            part = units(collection, level)
            merged = _merged(merger, collection, part)
            total += weight * merged[part.group]
            beside += len(merged)
        return Stored(total.astype(np.float32), cut.chunk_target, collection.queries, beside)


@dataclass(frozen=True)
class Embedded(Rival):
    """Embeds the text of each unit, as far as the embedder's context goes: no merger at all.

    FINESSE measures it in native mode.

    Attributes:
        embeddings: the embedder, of any dimension; None for the base embedder, which makes this truncation.
    """

    name: str
    about: str
    embeddings: Embeddings | None = None

    def stored(self, collection: Collection, cut: Units) -> Stored | None:
        """A vector a unit; None for a collection without text."""
        text = collection.text
        if text is None:
            return None
        task, texts = collection.name, list(unit_texts(collection, cut))
        if self.embeddings is None:
            return Stored(text.embed(f"{task}-{cut.level}", texts), cut.target, collection.queries)
        stored = self.embeddings(f"{task}-{cut.level}", texts)
        return Stored(stored, cut.target, self.embeddings.queries(f"{task}-queries", text.queries))


def calibrated(sample: Sample) -> CalibratedMerger:
    """The bundled merger, calibrated; without its background where the sample has another dimension."""
    default = load_merger()
    if len(sample) and np.shape(sample[0])[-1] != default.dimension:
        default = CalibratedMerger(dimension=int(np.shape(sample[0])[-1]))
    merger = default.calibrated(sample)
    assert isinstance(merger, CalibratedMerger)
    return merger


def orthogonal_limit(count: int) -> float:
    """1/√n: the most that a vector's mean cosine with n orthogonal vectors can be."""
    if count < 1:
        raise InputError(f"count is {count}; there is a limit from 1 vector on.")
    return float(count**-0.5)


def own_limit(vectors: Matrix) -> float:
    """|Σ x_i| / n: the most that a vector's mean cosine with these n can be, reached by their mean alone."""
    rows = unit(np.asarray(vectors, np.float32)).astype(np.float64)
    return float(np.linalg.norm(rows.sum(axis=0)) / len(rows))


def _merged(merger: SequenceMerger, collection: Collection, cut: Units) -> Matrix:
    """(u, d) the merge of each unit."""
    return merger.merge_many(
        by_group(collection.chunks, cut.group), masses=by_group(collection.masses, cut.group)
    )


def _synthesizer(_sample: Sample) -> SequenceMerger:
    return load_merger(SYNTHESIZER)


_chain, _tree = partial(RolledMerger, strategy="chain"), partial(RolledMerger, strategy="tree")


@dataclass(frozen=True)
class Registry:
    """Rivals by name, in the order of the tables."""

    known: dict[str, Rival] = field(default_factory=dict)

    def register(self, rival: Rival) -> None:
        """Add a rival.

        Raises:
            InputError: there is one of that name, or a limit is called so.
        """
        if rival.name in self.known or rival.name in (LIMIT, OWN_LIMIT):
            raise InputError(f"There is a rival {rival.name!r} already; choose another name.")
        self.known[rival.name] = rival

    def rivals(self, names: Iterable[str] | None = None) -> list[Rival]:
        """The rivals of these names, or all that can take part here.

        Args:
            names: in the order wanted; None for all.

        Raises:
            InputError: no such rival, or one that cannot take part here.
        """
        if names is None:
            return [rival for rival in self.known.values() if rival.missing is None]
        found = []
        for name in names:
            rival = self.known.get(name)
            if rival is None:
                raise InputError(f"{name!r} is no rival; there are {', '.join(map(repr, self.known))}.")
            if rival.missing is not None:
                raise InputError(f"The rival {name!r} cannot take part: {rival.missing}.")
            found.append(rival)
        return found

    def unfit(self, dimension: int, *, ours: bool) -> dict[str, str]:
        """By name, why rivals take no part in a run unless somebody names them; see `Rival.unfit`."""
        reasons = {name: rival.unfit(dimension, ours=ours) for name, rival in self.known.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}


_REGISTRY = Registry()
register, rivals, unfit = _REGISTRY.register, _REGISTRY.rivals, _REGISTRY.unfit

for _rival in (
    Embedded(TRUNCATION, "the first tokens embedded, as far as the context goes"),
    Merging("mean, unweighted", "every chunk counts alike", lambda _sample: unweighted_mean()),
    Merging(BASELINE, "mass-weighted mean", lambda _sample: MeanMerger()),
    Merging("mean, chain", "mean of two, one chunk after another", lambda _: MeanMerger(), around=_chain),
    Merging("first + mean", "the opening counts as much as all of it", lambda _sample: first_and_mean()),
    Merging("max pooling", "the largest entry of every dimension", lambda _sample: max_pooling()),
    Merging("centred mean", "mean less the collection's mean", centred_mean),
    Merging("whitened mean", "mean in the whitened space, mapped back", whitened_mean),
    Merging(
        "generalised max pooling",
        "ridge pooling of raw vectors",
        lambda sample: CalibratedMerger(dimension=np.shape(sample[0])[-1]),
    ),
    QuerySide("query-side calibration", "mean stored, queries mapped", calibrated),
    Merging("calibrated", "whitened, ridge-pooled, mapped back, all chunks at once", calibrated),
    Merging("calibrated, tree", "the same through the tree", calibrated, around=_tree),
    Merging("calibrated, chain", "the same, one after another", calibrated, around=_chain),
    Merging(
        "calibrated, rising", "later chunks count more, chunk j √j times", calibrated, around=RisingMerger
    ),
    Merging("synthesizer", "the bundled trained merger", _synthesizer, SYNTHESIZER, MiniLMEmbedder.dimension),
    Merging(
        "synthesizer, chain",
        "the same, one chunk after another",
        _synthesizer,
        SYNTHESIZER,
        MiniLMEmbedder.dimension,
        _chain,
    ),
    EveryChunk("every chunk", "all raw chunk vectors, the best one counts: the ceiling of today"),
    EveryChunk("every chunk, calibrated", "all calibrated chunk vectors", calibrated),
    EveryChunk("every chunk, contextual", "all contextual chunk vectors", calibrated, contextual=True),
    Fused("every chunk, fused", "all calibrated chunk vectors with their section and root", calibrated),
):
    register(_rival)
