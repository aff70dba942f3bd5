"""Loaded data and rivals of a run, and what each axis makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from merger_plugins.chunking import CHUNK_TOKENS
from merger_plugins.finesse.axes import robustness
from merger_plugins.finesse.axes.cost import cost
from merger_plugins.finesse.axes.follow_ups import WAYS, follow_ups
from merger_plugins.finesse.bench_results import finesse_records
from merger_plugins.finesse.collections import Collection, Level
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.fits import Fits
from merger_plugins.finesse.follow_ups import FollowUps
from merger_plugins.finesse.naming import Entry
from merger_plugins.finesse.probes import EmbeddedProbes, Probes, choose_probes, embed_probes
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.results import FinesseResult
from merger_plugins.finesse.rivals import Embedded, Rival
from merger_plugins.finesse.run import run_finesse, run_native
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.synthesis import MergerSynthesis, NativeSynthesis, Synthesis
from merger_plugins.finesse.tasks import Source, Task
from merger_plugins.mergers.base import SequenceMerger

_TRAINED_GATE = "trained gate"


@dataclass(frozen=True)
class Measured:
    """What a step found.

    Attributes:
        records: the figures.
        finesse: by rival, the runs of FINESSE behind them.
    """

    records: list[Record]
    finesse: Mapping[str, FinesseResult] = field(default_factory=dict)


Axis = Callable[..., list[Record]]


@dataclass(eq=False)
class Laboratory:
    """What the steps of a run share.

    Attributes:
        source: the data folder and the base embedder.
        entries: the rivals.
    """

    source: Source
    entries: Sequence[Entry]
    _fits: Fits = field(default_factory=Fits)
    _loaded: dict[str, Collection] = field(default_factory=dict)
    _probes: dict[str, tuple[EmbeddedProbes, FinesseSettings]] = field(default_factory=dict)

    @property
    def rivals(self) -> list[Rival]:
        """All of them, each of which makes its merger once for a sample."""
        return [self._fits.remembering(entry.rival) for entry in self.entries]

    @property
    def scored(self) -> list[Rival]:
        """Those that FINESSE can measure: with a merger, or an embedder of whole texts."""
        return [
            self._fits.remembering(entry.rival)
            for entry in self.entries
            if entry.output is not None or isinstance(entry.rival, Embedded)
        ]

    def collection(self, task: Task) -> Collection:
        """A task's collection, loaded once.

        Raises:
            InputError: it is none; otherwise as `Task.load`.
        """
        if task.name not in self._loaded:
            self._loaded[task.name] = task.collection(self.source)
        return self._loaded[task.name]

    def on(self, axis: Axis, task: Task, **options: object) -> Callable[[], Measured]:
        """An axis on a collection, to be measured later."""
        return lambda: Measured(axis(self.rivals, self.collection(task), **options))

    def cost(self, task: Task, *, repeats: int) -> Measured:
        """What merging takes; every merger is made anew, as that is timed, too."""
        rivals = [entry.rival for entry in self.entries]
        return Measured(cost(rivals, self.collection(task), repeats=repeats))

    def on_levels(
        self, axis: Axis, task: Task, levels: Sequence[Level], **options: object
    ) -> Callable[[], Measured]:
        """The same of those levels that the collection has."""

        def measure() -> Measured:
            collection = self.collection(task)
            wanted = [level for level in levels if level != "passages" or collection.passage is not None]
            return Measured(axis(self.rivals, collection, levels=wanted, **options))

        return measure

    def follow_ups(self, task: Task, *, seed: int) -> Measured:
        """The follow-up questions; the trained gate only where its embedder made the vectors."""
        loaded = task.load(self.source)
        assert isinstance(loaded, FollowUps)
        ways = [way for way in WAYS if self.source.embed.bundled or not way.startswith(_TRAINED_GATE)]
        return Measured(follow_ups(self.rivals, loaded, ways=ways, seed=seed))

    def robustness(self, task: Task, *, seed: int) -> Measured:
        """Junk, foreign chunks and copies in a collection."""
        collection = self.collection(task)
        return Measured(
            [
                *robustness.junk(self.rivals, collection, self.source.embed, seed=seed),
                *robustness.foreign(self.rivals, collection, seed=seed),
                *robustness.copies(self.rivals, collection, seed=seed),
            ]
        )

    def recut(self, task: Task, *, seed: int) -> Measured:
        """Chunks of other sizes, and chunks that overlap."""
        return Measured(
            [
                *robustness.chunk_sizes(self.rivals, task, self.source, seed=seed),
                *robustness.overlaps(self.rivals, task, self.source, seed=seed),
            ]
        )

    def languages(self, tasks: Sequence[Task], *, seed: int) -> Measured:
        """The first collection's questions, with more and more of the other ones stored beside it."""
        collections = [self.collection(task) for task in tasks]
        return Measured(robustness.languages(self.rivals, collections, seed=seed))

    def finesse(self, task: Task, rival: Rival, settings: FinesseSettings, *, native_chunks: int) -> Measured:
        """FINESSE of one rival, in native mode of an embedder of whole texts.

        A merger is calibrated on the probes, each an article of one chunk.

        Args:
            task: the articles.
            rival: of `scored`.
            settings: sizes; smaller ones are taken where there are too few articles.
            native_chunks: chunks of the longest sequences in native mode, where order is measured at the
                shortest length alone.

        Raises:
            InputError: too few articles even for the smallest settings; in native mode, an embedder that does
                not tell its context.
        """
        probes, fitting = self.probes(task, settings)
        if isinstance(rival, Embedded):
            lengths = tuple(length for length in fitting.lengths if length <= native_chunks)
            shorter = replace(fitting, lengths=lengths, order_lengths=fitting.order_lengths[:1])
            result = run_native(self._native(probes, rival), shorter)
        else:
            result = run_finesse(merger_on(probes, rival), probes, fitting)
        return Measured(finesse_records(result, task.name, rival.name, fitting), {rival.name: result})

    def synthesis(self, probes: EmbeddedProbes, rival: Rival) -> Synthesis:
        """What FINESSE measures of a rival.

        Raises:
            InputError: in native mode, an embedder that does not tell its context.
        """
        if isinstance(rival, Embedded):
            return NativeSynthesis(self._native(probes, rival))
        return MergerSynthesis(merger_on(probes, rival), probes)

    def _native(self, probes: EmbeddedProbes, rival: Embedded) -> EmbeddedProbes:
        return probes if rival.embeddings is None else _embedded(probes.probes, rival.embeddings)

    def probes(self, task: Task, settings: FinesseSettings) -> tuple[EmbeddedProbes, FinesseSettings]:
        """Probes of a task's articles, drawn once, and the settings that so many suffice for.

        Raises:
            InputError: too few articles even for the smallest settings.
        """
        if task.name not in self._probes:
            self._probes[task.name] = self._drawn(task, settings)
        return self._probes[task.name]

    def _drawn(self, task: Task, settings: FinesseSettings) -> tuple[EmbeddedProbes, FinesseSettings]:
        articles = task.load(self.source)
        assert isinstance(articles, list)
        fitting = smaller(settings, len(articles))
        probes = choose_probes(articles, fitting.probes, tokens=CHUNK_TOKENS, seed=settings.seed)
        return _embedded(probes, self.source.embed), fitting


def _embedded(probes: Probes, embed: Embeddings) -> EmbeddedProbes:
    return embed_probes(probes, embed, tokens=embed.tokens_at_most(probes.texts, probes.tokens))


def merger_on(probes: EmbeddedProbes, rival: Rival) -> SequenceMerger:
    """A rival's merger, calibrated on probes, each an article of one chunk."""
    merger = rival.merger([probes.vectors[row : row + 1] for row in range(len(probes))])
    assert merger is not None
    return merger


def smaller(settings: FinesseSettings, articles: int) -> FinesseSettings:
    """The first of four settings, from these downwards, that so many articles suffice for; else the last."""
    few = replace(settings, lengths=(4, 8), samples=2, order_lengths=(4,), order_samples=2, order_group=2)
    some = replace(few, lengths=(4, 8, 16), samples=10, order_lengths=(4, 8), order_group=5)
    many = replace(some, lengths=(4, 8, 16, 32))
    return next((rung for rung in (settings, many, some) if rung.probes <= articles), few)
