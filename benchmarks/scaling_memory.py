"""Memory high-water marks, each of a process: ``python -m benchmarks.scaling_memory CASE VECTORS``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Floats
from benchmarks.scaling_data import DIMENSION, calibrated, documents
from merger_plugins import RollingMerge, load_merger
from merger_plugins.mergers.calibration import CalibrationStatistics
from merger_plugins.mergers.loading import SYNTHESIZER

BLOCK = 20_000


def streamed(vectors: int) -> Iterator[list[Floats]]:
    """The same collection, some documents at a time; nothing before is kept."""
    for seed in range(max(vectors // BLOCK, 1)):
        yield documents(min(BLOCK, vectors), 1, 40, seed=seed)


def nothing(vectors: int) -> None:
    """The package, the default merger, and a calibration on a few documents."""


def at_once(vectors: int) -> None:
    calibrated(documents(BLOCK, 1, 40)).merge_many(documents(vectors, 1, 40))


def in_blocks(vectors: int) -> None:
    merger = calibrated(documents(BLOCK, 1, 40))
    for some in streamed(vectors):
        merger.merge_many(some)


def calibrating(vectors: int) -> None:
    statistics = CalibrationStatistics(DIMENSION)
    for some in streamed(vectors):
        statistics += CalibrationStatistics.of(some, DIMENSION)


def _conversation(vectors: int, *, history: bool) -> None:
    rolling = RollingMerge(calibrated(documents(BLOCK, 1, 40)), history=history)
    for some in streamed(vectors):
        for sequence in some:
            rolling.extend(sequence)
    rolling.vector  # noqa: B018


def one_document(vectors: int) -> None:
    _conversation(vectors, history=False)


def one_document_kept(vectors: int) -> None:
    _conversation(vectors, history=True)


def synthesizer(vectors: int) -> None:
    load_merger(SYNTHESIZER).merge_many(documents(vectors, 1, 10))


CASES: dict[str, tuple[Callable[[int], None], int, str]] = {
    "nothing": (nothing, 0, "importing, loading and calibrating the default merger"),
    "at once": (at_once, 400_000, "merge_many of all documents at once; the list itself is counted"),
    "in blocks": (in_blocks, 1_000_000, "the same, 20,000 chunks at a time"),
    "calibrating": (calibrating, 1_000_000, "statistics of a stream"),
    "one document": (one_document, 1_000_000, "one document or conversation, rolling, without history"),
    "one document, kept": (one_document_kept, 400_000, "the same, with its history"),
    "synthesizer": (synthesizer, 20_000, "the synthesizer, sections at once; the list itself is counted"),
}


def in_a_process(name: str, vectors: int) -> dict[str, Any]:
    """One case in another process: megabytes at the most."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling_memory", name, str(vectors)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def memory(scale: float) -> dict[str, Any]:
    """All cases."""
    found = {}
    for name, (_, vectors, what) in CASES.items():
        count = int(vectors * scale)
        found[name] = {
            "what": what,
            "vectors": count,
            "vectors, MB": round(4 * DIMENSION * count / 1e6, 1),
            **in_a_process(name, count),
        }
    return found


def main() -> None:
    name, vectors = sys.argv[1], int(sys.argv[2])
    calibrated(documents(BLOCK, 1, 40))  # what every case stands on
    before = _peak()
    CASES[name][0](vectors)
    print(json.dumps({"most, MB": _peak(), "before, MB": before}))


def _peak() -> float:
    """Of this program; `ru_maxrss` would count what the process held that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1e3, 1)
    raise SystemExit("Memory high-water marks are read from /proc, which only Linux has.")


if __name__ == "__main__":
    main()
