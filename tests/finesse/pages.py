"""A report over small real runs, with texts and names that would harm a careless page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from merger_plugins import CalibratedMerger, MeanMerger
from merger_plugins.finesse.axes.cost import cost
from merger_plugins.finesse.axes.extrapolation import extrapolation
from merger_plugins.finesse.axes.retrieval import retrieval
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.report import Sample, dissect, write
from merger_plugins.finesse.rivals import Merging, Rival, rivals
from merger_plugins.finesse.run import run_finesse
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.synthesis import MergerSynthesis
from tests.finesse.articles import DIMENSION, embedded
from tests.finesse.lab import collection

SETTINGS = FinesseSettings(
    lengths=(4, 6, 9), samples=3, timed=2, order_lengths=(4,), order_samples=2, order_group=3
)
PROBES = embedded(SETTINGS.probes)
MERGERS = {
    "mean": MeanMerger(),
    "ridge": CalibratedMerger(dimension=DIMENSION),
}
HOSTILE = '<b>bold</b></script><img src=x onerror="window.harmed=1">{{script}} & \u2028 "quoted"'


@cache
def samples() -> list[Sample]:
    return [
        sample
        for name, merger in MERGERS.items()
        for sample in dissect(name, MergerSynthesis(merger, PROBES), len(PROBES), SETTINGS, samples=2)
    ]


@cache
def axis_records() -> list[Record]:
    """Retrieval, extrapolation and cost of a few rivals on a synthetic collection."""
    here = collection(spread=6)
    some: Sequence[Rival] = [
        *rivals(["mean", "centred mean", "every chunk"]),
        Merging(HOSTILE, "hostile", lambda _sample: MeanMerger()),
    ]
    return [
        *retrieval(some, here),
        *extrapolation(some, here, lengths=(4, 8, 12)),
        *cost(some, here, repeats=2),
    ]


def page(folder: Path) -> Path:
    """A page with everything on it."""
    files = [folder / f"{name}.json" for name in MERGERS]
    for merger, file in zip(MERGERS.values(), files, strict=True):
        run_finesse(merger, PROBES, SETTINGS, path=file)
    return write(
        [*files, *axis_records()],
        folder / "page.html",
        anatomy=samples(),
        texts=[f"{HOSTILE} {text}" for text in PROBES.probes.texts],
        names={merger.fingerprint: name for name, merger in MERGERS.items()},
        title=f"Title {HOSTILE}",
        note=f"Note {HOSTILE}",
    )


def data(page: Path) -> dict[str, Any]:
    """What the page's scripts read."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S
    )
    assert found is not None
    parsed: dict[str, Any] = json.loads(found[1])
    return parsed
