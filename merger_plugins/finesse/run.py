"""Runs FINESSE and keeps its result file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._extras import require
from merger_plugins.errors import InputError, ResultError
from merger_plugins.finesse.environment import environment
from merger_plugins.finesse.probes import EmbeddedProbes
from merger_plugins.finesse.results import (
    Benchmark,
    FinesseResult,
    LengthScores,
    OrderScores,
    describe_merger,
    describe_probes,
    save,
    verify,
)
from merger_plugins.finesse.scoring import (
    GAPS,
    ORDER_SCALE,
    Gap,
    bottom_up,
    order_sensitivity,
    similarities,
    top_down,
)
from merger_plugins.finesse.settings import FinesseSettings, Indices
from merger_plugins.finesse.synthesis import MergerSynthesis, NativeSynthesis, Synthesis
from merger_plugins.mergers.base import SequenceMerger

_DIGITS = 9

Progress = Callable[[str, int, int, int], None]
"""Told ``"separation"`` or ``"order"``, the length, samples done and samples in all."""


def run_finesse(
    merger: SequenceMerger,
    probes: EmbeddedProbes,
    settings: FinesseSettings | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FinesseResult:
    """Measure a merger: syntheses are merges of chunk vectors, chunks are seen as merges of one.

    Args:
        merger: any, of the embedder's dimension.
        probes: texts and vectors, at least `settings.probes`.
        settings: the defaults for None.
        path: a result file, written after each length. Where it is there already, of the same run on the
            same machine, its finished lengths are kept and only the others are measured.
        progress: called after each sample.

    Raises:
        InputError: a merger of another dimension, or too few probes.
        ResultError: the file at `path` was edited, or is that of another run.
        MissingExtraError: scipy is not installed.
    """
    settings = settings or FinesseSettings()
    return _run("finesse", MergerSynthesis(merger, probes), merger, probes, settings, {}, path, progress)


def run_native(
    probes: EmbeddedProbes,
    settings: FinesseSettings | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FinesseResult:
    """Measure an embedder without a merger: syntheses are its vectors of the chunks' text, joined by spaces.

    Lengths that may not fit its context, at `synthesis.MARGIN` tokens less, are skipped, and the result says
    so. Order is slow here: each sample of n chunks takes (n - 2)(n + 1) x `order_group` texts.

    Args:
        probes: texts and vectors, at least `settings.probes`; they hold the embedder and its context.
        settings: as in `run_finesse`.
        path: as in `run_finesse`.
        progress: as in `run_finesse`.

    Raises:
        InputError: the embedder's context is unknown, or there are too few probes.
        ResultError: as `run_finesse`.
    """
    settings = settings or FinesseSettings()
    native = NativeSynthesis(probes)
    skipped = {
        length: f"{length} chunks of {probes.tokens} tokens may not fit a context of {native.context}"
        for length in (*settings.lengths, *settings.order_lengths)
        if not native.fits(length)
    }
    return _run("finesse-native", native, None, probes, settings, skipped, path, progress)


def sample_similarities(synthesis: Synthesis, sample: Indices) -> NDArray[np.float64]:
    """The cosines that a sample is scored by: (n, n), row i for the synthesis of its first i + 1 chunks."""
    prefixes = [sample[: stop + 1] for stop in range(len(sample))]
    vectors = synthesis([*prefixes, *sample[:, None]])
    return similarities(vectors[: len(sample)], vectors[len(sample) :])


def _run(
    benchmark: Benchmark,
    synthesis: Synthesis,
    merger: SequenceMerger | None,
    probes: EmbeddedProbes,
    settings: FinesseSettings,
    skipped: dict[int, str],
    path: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> FinesseResult:
    require("scipy", extra="bench", purpose="FINESSE")  # intervals: better missed now than after an hour
    if len(probes) < settings.probes:
        raise InputError(
            f"{len(probes)} probes arrived, and these settings need {settings.probes}. Choose more probes, "
            "or ask for fewer samples, shorter sequences or smaller groups."
        )
    run: dict[str, Any] = {
        "settings": {name: _plain(value) for name, value in asdict(settings).items()},
        "merger": describe_merger(merger),
        **describe_probes(probes),
        **environment(),
    }
    result = _resumed(benchmark, run, path) or FinesseResult(benchmark, run, skipped=skipped)
    if result.complete:
        return result
    if settings.timed:
        synthesis.timed(np.arange(2))  # the first call of a session or a BLAS routine is slow
    for length in settings.lengths:
        if length not in {*result.lengths, *skipped}:
            result.lengths[length] = _separation(synthesis, settings, len(probes), length, progress)
            _kept(result, path)
    for length in settings.order_lengths:
        if length not in {*result.orders, *skipped}:
            result.orders[length] = _order(synthesis, settings, len(probes), length, progress)
            _kept(result, path)
    result.complete = True
    _kept(result, path)
    return result


def _separation(
    synthesis: Synthesis, settings: FinesseSettings, probes: int, length: int, progress: Progress | None
) -> LengthScores:
    td: dict[Gap, list[float]] = {gap: [] for gap in GAPS}
    bu: dict[Gap, list[float]] = {gap: [] for gap in GAPS}
    times = []
    for number, sample in enumerate(settings.draw(probes, length)):
        matrix = sample_similarities(synthesis, sample)
        for gap in GAPS:
            td[gap].append(round(top_down(matrix, gap), _DIGITS))
            bu[gap].append(round(bottom_up(matrix, gap), _DIGITS))
        if number < settings.timed:
            times.append(synthesis.timed(sample))
        if progress:
            progress("separation", length, number + 1, settings.samples)
    full, merging = ([round(spent[part], 3) for spent in times] for part in (0, 1))
    return LengthScores(td, bu, full, merging)


def _order(
    synthesis: Synthesis, settings: FinesseSettings, probes: int, length: int, progress: Progress | None
) -> OrderScores:
    samples: dict[Gap, list[dict[int, list[float]]]] = {gap: [] for gap in GAPS}
    for number, (chunks, contexts) in enumerate(settings.draw_order(probes, length)):
        for gap in GAPS:
            samples[gap].append({})
        for count in range(2, length):
            inserted = list(_inserted(chunks[:count], contexts[:, : length - count]))
            vectors = synthesis([chunks[:count], *inserted])
            places = vectors[1:].reshape(-1, 2, settings.order_group, vectors.shape[1])
            for gap in GAPS:
                samples[gap][-1][count] = [
                    round(order_sensitivity(vectors[0], forward, backward, gap) * ORDER_SCALE, _DIGITS - 3)
                    for forward, backward in places
                ]
        if progress:
            progress("order", length, number + 1, settings.order_samples)
    return OrderScores(samples)


def _inserted(probe: Indices, contexts: Indices) -> Iterator[Indices]:
    """At each place: every context (g, m) with the probe inside, then every one with the probe reversed."""
    for place in range(contexts.shape[1] + 1):
        for inside in (probe, probe[::-1]):
            for context in contexts:
                yield np.concatenate([context[:place], inside, context[place:]])


def _resumed(
    benchmark: Benchmark, run: dict[str, Any], path: str | os.PathLike[str] | None
) -> FinesseResult | None:
    if path is None or not Path(path).exists():
        return None
    result = verify(path)
    mine, others = {"benchmark": benchmark, **run}, {"benchmark": result.benchmark, **result.run}
    for part, value in mine.items():
        if others.get(part) != value:
            raise ResultError(
                f"{path} is the result of another run: its {part} is {others.get(part)}, and now it is "
                f"{value}. Name another path, or delete the file."
            )
    return result


def _kept(result: FinesseResult, path: str | os.PathLike[str] | None) -> None:
    if path is not None:
        save(result, path)


def _plain(value: int | tuple[int, ...]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value
