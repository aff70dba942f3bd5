"""FINESSE's result files: what was measured, on what, with which hashes; found out when edited by hand.

::

    format         1
    benchmark      "finesse", or "finesse-native"
    run            settings, probes, merger, embedder, versions and hardware: what a resumed run must share
    lengths        for each length the scores of every sample, their means with 95% intervals, times in ms
    orders         the same of Sequence Recognition Sensitivity
    skipped        lengths that were not measured, with the reason
    average        means over all samples of all lengths; the position bias
    complete       false while a run goes on
    scores_hash    SHA-256 over what data and seed determine: no times, intervals, versions or hardware
    content_hash   SHA-256 over everything above

`bench_results.py` is the form of a run on every axis, which holds such documents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from merger_plugins.errors import ResultError
from merger_plugins.finesse.files import document_hash, read_result, sealed, write_result
from merger_plugins.finesse.metrics import interval
from merger_plugins.finesse.probes import EmbeddedProbes
from merger_plugins.finesse.scoring import GAPS, Gap, finesse, position_bias, robust_separation
from merger_plugins.mergers.base import SequenceMerger

FORMAT: Final = 1

Benchmark = Literal["finesse", "finesse-native"]

_UNDETERMINED: Final = ("versions", "hardware", "summary", "full_ms", "merging_ms")


@dataclass(frozen=True)
class LengthScores:
    """Sequences of one length.

    Attributes:
        td: Top-Down of every sample, for each gap.
        bu: Bottom-Up of every sample, for each gap.
        full_ms: milliseconds from texts to the merged vector, of the samples that were timed.
        merging_ms: of that, milliseconds from the stored chunk vectors on; in native mode all of it.
    """

    td: Mapping[Gap, Sequence[float]]
    bu: Mapping[Gap, Sequence[float]]
    full_ms: Sequence[float]
    merging_ms: Sequence[float]

    def finesse(self, gap: Gap = "q1q3") -> list[float]:
        """The balanced score of every sample."""
        return [finesse(td, bu) for td, bu in zip(self.td[gap], self.bu[gap], strict=True)]

    def rss(self, gap: Gap = "q1q3") -> list[float]:
        """The Robust Separation Score of every sample, as finesse-benchmark 0.18.9 writes it."""
        return [robust_separation(td, bu) for td, bu in zip(self.td[gap], self.bu[gap], strict=True)]

    def summary(self) -> dict[str, Any]:
        """Means over the samples with their 95% intervals, None for one sample, and medians of the times."""
        means: dict[str, Any] = {
            gap: {
                "finesse": _mean(self.finesse(gap)),
                "rss": _mean(self.rss(gap)),
                "td": _mean(self.td[gap]),
                "bu": _mean(self.bu[gap]),
            }
            for gap in GAPS
        }
        times = {"full_ms": self.full_ms, "merging_ms": self.merging_ms}
        return means | {name: round(float(np.median(ms)), 3) for name, ms in times.items() if ms}


@dataclass(frozen=True)
class OrderScores:
    """Sequence Recognition Sensitivity in sequences of one length, in thousandths.

    Attributes:
        samples: for each gap the samples, each a mapping from probe length to the scores at all places.
    """

    samples: Mapping[Gap, Sequence[Mapping[int, Sequence[float]]]]

    def srs(self, gap: Gap = "q1q3") -> list[float]:
        """Each sample's mean over probe lengths and places."""
        return [
            float(np.mean([score for places in sample.values() for score in places]))
            for sample in self.samples[gap]
        ]

    def summary(self) -> dict[str, Any]:
        """Means over the samples with their 95% intervals."""
        return {gap: {"srs": _mean(self.srs(gap))} for gap in GAPS}


@dataclass
class FinesseResult:
    """A run, finished or under way.

    Attributes:
        benchmark: ``"finesse"`` for a merger, ``"finesse-native"`` for an embedder on the growing text.
        run: settings, probes, merger, embedder, versions and hardware.
        lengths: scores of each length.
        orders: scores of each length in which order was measured.
        skipped: why a length was not measured.
        complete: whether nothing is left to do.
    """

    benchmark: Benchmark
    run: dict[str, Any]
    lengths: dict[int, LengthScores] = field(default_factory=dict)
    orders: dict[int, OrderScores] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    complete: bool = False

    @property
    def average(self) -> dict[str, Any]:
        """Means over all samples of all lengths, as finesse-benchmark has them; the position bias."""
        average: dict[str, Any] = {gap: {} for gap in GAPS}
        for gap in GAPS:
            if self.lengths:
                parts = self.lengths.values()
                average[gap]["finesse"] = _average([part.finesse(gap) for part in parts])
                average[gap]["rss"] = _average([part.rss(gap) for part in parts])
            if self.orders:
                samples = [(length, part.samples[gap]) for length, part in sorted(self.orders.items())]
                places = [list(scores) for _, rows in samples for row in rows for scores in row.values()]
                average[gap]["srs"] = _average(places)
                average[gap]["position_bias"] = _rounded(position_bias(samples))
        return average

    @property
    def scores_hash(self) -> str:
        """Tells whether two runs found the same: over everything but times, versions and hardware."""
        return _scores_hash(self._document())

    def to_json(self) -> dict[str, Any]:
        """The contents of a result file."""
        document = self._document()
        return sealed(document | {"scores_hash": _scores_hash(document)})

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "run": self.run,
            "lengths": _written(self.lengths),
            "orders": _written(self.orders),
            "skipped": {str(length): reason for length, reason in sorted(self.skipped.items())},
            "average": self.average,
            "complete": self.complete,
        }


def save(result: FinesseResult, path: str | os.PathLike[str]) -> None:
    """Write a result file, whole or not at all."""
    write_result(result.to_json(), path)


def verify(
    path: str | os.PathLike[str],
    *,
    merger: SequenceMerger | None = None,
    probes: EmbeddedProbes | None = None,
) -> FinesseResult:
    """Read a result file and check that nobody edited it.

    Args:
        path: a file that `save` wrote.
        merger: the merger that it should be of; None to take the file's word.
        probes: texts and embedder that it should be of; None to take the file's word.

    Raises:
        ResultError: the file is missing, damaged, edited or of a newer version, or of another merger,
            other texts or another embedder.
    """
    result = from_json(read_result(path, get_args(Benchmark), FORMAT))
    _check_models(result, Path(path), merger, probes)
    return result


def describe_merger(merger: SequenceMerger | None) -> dict[str, Any] | None:
    """What a result file says of a merger; None in native mode."""
    return None if merger is None else {"name": type(merger).__name__, "fingerprint": merger.fingerprint}


def describe_probes(probes: EmbeddedProbes) -> dict[str, Any]:
    """What a result file says of texts and embedder."""
    languages = sorted(set(probes.probes.languages))
    return {
        "data": {
            "revision": probes.probes.revision,
            "probes": len(probes),
            "tokens": probes.probes.tokens,
            "languages": {name: probes.probes.languages.count(name) for name in languages},
            "mean_cosine": probes.mean_cosine,
            "independent": probes.independent,
        },
        "embedder": {
            "name": probes.name,
            "fingerprint": probes.fingerprint,
            "dimension": int(probes.vectors.shape[1]),
        },
    }


def _check_models(
    result: FinesseResult, source: Path, merger: SequenceMerger | None, probes: EmbeddedProbes | None
) -> None:
    expected: dict[str, Any] = {} if merger is None else {"merger": describe_merger(merger)}
    if probes is not None:
        expected |= describe_probes(probes)
    for part, value in expected.items():
        if result.run[part] != value:
            raise ResultError(
                f"{source} has the {part} {result.run[part]}, where {value} was expected. It is another "
                "run's result."
            )


def from_json(document: Mapping[str, Any]) -> FinesseResult:
    """The result that `FinesseResult.to_json` wrote."""
    return FinesseResult(
        document["benchmark"],
        document["run"],
        {
            int(length): LengthScores(part["td"], part["bu"], part["full_ms"], part["merging_ms"])
            for length, part in document["lengths"].items()
        },
        {
            int(length): OrderScores(
                {
                    gap: [{int(probe): scores for probe, scores in sample.items()} for sample in samples]
                    for gap, samples in part["samples"].items()
                }
            )
            for length, part in document["orders"].items()
        },
        {int(length): reason for length, reason in document["skipped"].items()},
        document["complete"],
    )


def _scores_hash(document: Mapping[str, Any]) -> str:
    def determined(part: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in part.items() if name not in _UNDETERMINED}

    parts: dict[str, Any] = {
        name: {length: determined(part) for length, part in document[name].items()}
        for name in ("lengths", "orders")
    }
    return document_hash({**document, **parts, "run": determined(document["run"])})


def _written(parts: Mapping[int, LengthScores] | Mapping[int, OrderScores]) -> dict[str, Any]:
    listed: list[tuple[int, LengthScores | OrderScores]] = sorted(parts.items())
    written = {str(length): {"summary": part.summary(), **asdict(part)} for length, part in listed}
    plain: dict[str, Any] = json.loads(json.dumps(written))  # keys of mappings are strings in JSON
    return plain


def _mean(values: Sequence[float]) -> dict[str, Any]:
    ends = interval(np.asarray(values)) or (None, None)
    low, high = (None if end is None else _rounded(end) for end in ends)
    return {"mean": _rounded(np.mean(values)), "low": low, "high": high}


def _average(parts: Sequence[Sequence[float]]) -> float:
    return _rounded(np.mean([value for part in parts for value in part]))


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 6) + 0.0  # no minus before a zero
