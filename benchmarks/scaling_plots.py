"""Plots of benchmarks/results/scaling.json as PNG files in docs/: ``python -m benchmarks.scaling_plots``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT

DOCS = ROOT / "docs"


def draw(figures: dict[str, Any]) -> list[Path]:
    """Write the plots; returns their files."""
    import matplotlib

    matplotlib.use("Agg")
    return [_curves(figures), _roofline(figures["roofline"])]


def _curves(figures: dict[str, Any]) -> Path:
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    curves, turns = figures["curves"], figures["turns"]
    documents, lengths, dimensions = grid[0, 0], grid[0, 1], grid[1, 0]
    found = curves["documents"]
    documents.plot([int(n) for n in found], [row["vectors a second"] for row in found.values()], "o-")
    documents.set(xscale="log", ylim=0, xlabel="documents in one merge_many", ylabel="vectors a second")
    found = curves["chunks a document"]
    for name in ("merge_many", "tree, one document at a time"):
        rows = {int(length): row[name] for length, row in found.items() if name in row}
        lengths.plot(list(rows), list(rows.values()), "o-", label=name)
    lengths.set(xscale="log", ylim=0, xlabel="chunks a document", ylabel="vectors a second")
    lengths.legend()
    found = curves["dimension"]
    for name, label in (
        ("vectors a second", "merge_many"),
        ("whitening product alone, vectors a second", "the whitening product alone"),
    ):
        dimensions.plot([int(d) for d in found], [row[name] for row in found.values()], "o-", label=label)
    dimensions.set(xscale="log", yscale="log", xlabel="dimension", ylabel="vectors a second")
    dimensions.set_xticks([int(d) for d in found], list(found))
    dimensions.minorticks_off()
    dimensions.legend()
    for name, row in turns.items():
        micro = row["microseconds an append and a root"]
        grid[1, 1].plot([int(turn) for turn in micro], list(micro.values()), "o-", label=name)
    grid[1, 1].set(xscale="log", ylim=0, xlabel="turns before", ylabel="microseconds, append and root")
    grid[1, 1].legend()
    return _written(figure, "scaling.png")


def _roofline(found: dict[str, Any]) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    peak, bandwidth = found["matrix GFLOP/s"], found["memory GB/s"]
    intensities = [0.05, peak / bandwidth, 1_000]
    axes.plot(intensities, [min(peak, bandwidth * x) for x in intensities], "k-", label="measured limit")
    for name, stage in found["stages"].items():
        intensity = stage["operations a vector"] / stage["bytes a vector"]
        (point,) = axes.plot(intensity, stage["GFLOP/s"], "o", label=name)
        axes.vlines(intensity, stage["GFLOP/s"], stage["attainable GFLOP/s"], point.get_color(), "dotted")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.set_title("merge_many of the calibrated merger, stage by stage")
    axes.legend()
    return _written(figure, "roofline.png")


def _written(figure: Any, name: str) -> Path:
    DOCS.mkdir(exist_ok=True)
    path = DOCS / name
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    result = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    print(*draw(result["figures"]), sep="\n")
