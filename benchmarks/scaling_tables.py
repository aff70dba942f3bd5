"""The tables of docs/SCALE.md, from scaling.json, gpu.json and ray.json in benchmarks/results."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, table

NOT_MEASURED = "not measured"
NAMES = (
    "scale-bars",
    "scale-rivals",
    "scale-roofline",
    "scale-lengths",
    "scale-dimensions",
    "scale-turns",
    "scale-memory",
    "scale-checked",
    "scale-machines",
    "scale-assumed",
)
GPU_ROWS = {
    "synthesizer, times two threads of the processor": ">= 50",
    "card-137m, share of the matrix rate": ">= 0.3",
}


def tables() -> dict[str, str]:
    """The tables by name."""
    measured = _figures("scaling")
    found = dict.fromkeys(NAMES, f"Not measured: no {RESULTS.name}/scaling.json.")
    if measured:
        found |= {
            "scale-bars": _bars(measured["bars"]),
            "scale-rivals": _rivals(measured["rivals"]),
            "scale-roofline": _roofline(measured["roofline"]),
            "scale-lengths": _lengths(measured["curves"]["chunks a document"]),
            "scale-dimensions": _dimensions(measured["curves"]["dimension"]),
            "scale-turns": _turns(measured["turns"]),
            "scale-memory": _memory(measured["memory"]),
            "scale-checked": _checked(measured["job"]),
            "scale-machines": _machines(measured["job"]),
            "scale-assumed": _assumed(measured["job"]),
        }
    return found | {"scale-gpu": _gpu(_figures("gpu")), "scale-ray": _ray(_figures("ray"))}


def _figures(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures


def _ray(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return f"Not measured: no {RESULTS.name}/ray.json."
    return table(
        ("documents", "one worker", "two", "two over one"),
        *(
            (
                kind,
                *(
                    f"{row['chunks_per_second']:,} chunks a second"
                    for row in figures[kind]["workers"].values()
                ),
                f"{figures[kind]['gain_of_two_workers']:.2f}",
            )
            for kind in ("together", "scattered")
            if kind in figures
        ),
    )


def _bars(bars: dict[str, Any]) -> str:
    return table(
        ("", "measured", "bar", ""),
        *(
            (name, f"{row['measured']:,}", row["bar"], "" if row["met"] else "missed")
            for name, row in bars.items()
        ),
    )


def _rivals(figures: dict[str, Any]) -> str:
    kinds = [name for name in figures if name != "re-embedding"]
    embedding = figures["re-embedding"]
    chunks, tokens = embedding["chunks a second"], embedding["tokens a second"]
    return table(
        ("vectors a second (time over numpy's mean)", *kinds),
        *((name, *(_rate(figures[kind][name]) for kind in kinds)) for name in figures[kinds[0]]),
        (f"embedding the text again, {tokens:,} tokens a second", *([f"{chunks:,}"] * len(kinds))),
    )


def _rate(row: dict[str, Any]) -> str:
    times = row["times numpy's mean"]
    return f"{row['vectors a second']:,} ({times:.2f})"


def _roofline(figures: dict[str, Any]) -> str:
    return table(
        ("stage", "time", "of merge_many", "operations a byte", "GFLOP/s", "attainable", "reached"),
        *(
            (
                name,
                f"{stage['ms']:.1f} ms",
                f"{100 * stage['share of merge_many']:.0f}%",
                f"{stage['operations a vector'] / stage['bytes a vector']:.1f}",
                f"{stage['GFLOP/s']:.1f}",
                f"{stage['attainable GFLOP/s']:.1f}",
                f"{100 * stage['share of the roofline']:.0f}%",
            )
            for name, stage in figures["stages"].items()
        ),
    )


def _lengths(figures: dict[str, Any]) -> str:
    rows = ("merge_many", "tree, one document at a time")
    return table(
        ("chunks a document", *figures),
        *((name, *(f"{row[name]:,}" if name in row else "" for row in figures.values())) for name in rows),
    )


def _dimensions(figures: dict[str, Any]) -> str:
    return table(
        ("dimension", *figures),
        *((name, *(f"{row[name]:,}" for row in figures.values())) for name in next(iter(figures.values()))),
    )


def _turns(figures: dict[str, Any]) -> str:
    lengths = list(next(iter(figures.values()))["state, bytes"])
    return table(
        ("turns before", *(f"{int(length):,}" for length in lengths)),
        *(
            row
            for name, found in figures.items()
            for row in (
                (
                    f"{name}: microseconds, append and root",
                    *(f"{found['microseconds an append and a root'][length]:,}" for length in lengths),
                ),
                (f"{name}: bytes of state", *(f"{found['state, bytes'][length]:,}" for length in lengths)),
            )
        ),
    )


def _memory(figures: dict[str, Any]) -> str:
    return table(
        ("what", "vectors", "they alone, MB", "process at the most, MB"),
        *(
            (row["what"], f"{row['vectors']:,}", f"{row['vectors, MB']:,}", f"{row['most, MB']:,}")
            for row in figures.values()
        ),
    )


def _checked(job: dict[str, Any]) -> str:
    return table(
        ("", "measured, s", "the model, s", "error"),
        *(
            (name, f"{row['measured']:.2f}", f"{row['foretold']:.2f}", f"{100 * row['error']:+.0f}%")
            for name, row in job["checked at"].items()
        ),
    )


def _machines(job: dict[str, Any]) -> str:
    return table(
        ("", "merging alone", "back-filling Qdrant", "cost"),
        *(
            (
                name,
                _duration(row["merging alone, seconds"]),
                _duration(row["back-filling Qdrant, seconds"]),
                f"${row['$']:.2f}" if row["$"] >= 0.01 else "less than $0.01",
            )
            for name, row in job["foretold"].items()
        ),
    )


def _assumed(job: dict[str, Any]) -> str:
    values = "; ".join(f"{name}: {value:g}" for name, value in job["assumed"].items())
    return "\n".join(f"- {line}" for line in (*job["assumptions"], f"{values}."))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"


def _gpu(figures: dict[str, Any] | None) -> str:
    bars = figures["bars"] if figures else {}
    return table(
        ("", "measured", "bar"),
        *(
            (name, f"{bars[name]['measured']:,}" if name in bars else NOT_MEASURED, bar)
            for name, bar in GPU_ROWS.items()
        ),
    )
