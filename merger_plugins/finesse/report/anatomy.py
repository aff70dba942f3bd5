"""How a score of FINESSE comes about: the cosines of single samples, and the gaps read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.errors import InputError
from merger_plugins.finesse.bench import Bench
from merger_plugins.finesse.bench_results import BenchResult
from merger_plugins.finesse.run import sample_similarities
from merger_plugins.finesse.scoring import GAPS, Gap, bottom_up_gaps, top_down_gaps
from merger_plugins.finesse.settings import FinesseSettings, Indices
from merger_plugins.finesse.synthesis import Synthesis

Floats = NDArray[np.float64]

_DIGITS = 5


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a run, taken apart.

    Attributes:
        merger: its name on the page.
        number: of the sample among those of its length, from 0.
        chunks: (n,) numbers of the probes, in reading order.
        similarity: (n, n) cosines, row i for the synthesis of chunks 0 to i, column j for chunk j alone.
        td: for each gap (n - 2,), of syntheses 1 to n - 2.
        bu: for each gap (n - 1,), of chunks 1 to n - 1.
    """

    merger: str
    number: int
    chunks: Indices
    similarity: Floats
    td: Mapping[Gap, Floats]
    bu: Mapping[Gap, Floats]

    @property
    def length(self) -> int:
        """How many chunks it has."""
        return len(self.chunks)

    def to_dict(self) -> dict[str, Any]:
        """As the page takes it."""
        return {
            "merger": self.merger,
            "length": self.length,
            "sample": self.number,
            "chunks": self.chunks.tolist(),
            "similarity": _plain(self.similarity),
            "td": {gap: _plain(values) for gap, values in self.td.items()},
            "bu": {gap: _plain(values) for gap, values in self.bu.items()},
        }


def dissect(
    merger: str,
    synthesis: Synthesis,
    probes: int,
    settings: FinesseSettings | None = None,
    *,
    lengths: Iterable[int] | None = None,
    samples: int = 3,
) -> list[Sample]:
    """Take the first samples of each length apart: the same samples that a run with these settings scores.

    Args:
        merger: what the page calls it.
        synthesis: what is measured, such as `MergerSynthesis(merger, probes)`.
        probes: how many there are.
        settings: those of the run; the defaults for None.
        lengths: of the settings' lengths; None for all.
        samples: of each length, at the most.

    Raises:
        InputError: too few probes, or lengths that the settings do not have.
    """
    settings = settings or FinesseSettings()
    wanted = settings.lengths if lengths is None else tuple(sorted(set(lengths)))
    if strange := set(wanted) - set(settings.lengths):
        raise InputError(f"lengths hold {sorted(strange)}; the run has {settings.lengths}.")
    if samples < 1:
        raise InputError(f"samples is {samples}; at least 1 is needed.")
    if probes < settings.probes:
        raise InputError(f"{probes} probes arrived, and these settings need {settings.probes}.")
    found = []
    for length in wanted:
        for number, rows in enumerate(settings.draw(probes, length)[:samples]):
            matrix = sample_similarities(synthesis, rows)
            td = {gap: top_down_gaps(matrix, gap) for gap in GAPS}
            bu = {gap: bottom_up_gaps(matrix, gap) for gap in GAPS}
            found.append(Sample(merger, number, rows, matrix, td, bu))
    return found


def dissect_bench(bench: Bench, result: BenchResult, *, samples: int = 1) -> tuple[list[Sample], list[str]]:
    """Take samples of FINESSE apart for every rival that a run of `bench` measured it for.

    Args:
        bench: the run as it was planned.
        result: what it found.
        samples: of each length, at the most.

    Returns:
        The samples, and the texts of all probes; nothing where FINESSE was not measured.
    """
    names = {step.task for step in bench.planned if step.axis == "finesse"}
    tasks = [task for task in bench.tasks if task.name in names]
    if not tasks or not result.finesse:
        return [], []
    probes, settings = bench.laboratory.probes(tasks[0], bench.settings.finesse)
    found = []
    for rival in bench.laboratory.scored:
        if rival.name in result.finesse:
            synthesis = bench.laboratory.synthesis(probes, rival)
            lengths = result.finesse[rival.name].lengths
            found += dissect(rival.name, synthesis, len(probes), settings, lengths=lengths, samples=samples)
    return found, list(probes.probes.texts)


def _plain(values: Floats) -> Any:
    return np.round(values, _DIGITS).tolist()
