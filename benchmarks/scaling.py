"""How fast merging is beside its rivals and the machine's limits, and how it grows.

Run ``python -m benchmarks.scaling``, with the extras ``train`` (torch, matplotlib) and ``bench``. Every part
is measured in a process of its own, so that each can be repeated: ``--parts rivals roofline`` measures these
two and keeps what it found under .cache/; without ``--parts``, all of them. Once every part has been
measured, benchmarks/results/scaling.json and the plots in docs/ are written. ``--scale 0.05`` is a quick try,
which writes neither. Times are medians; nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import scaling_parts as parts
from benchmarks.common import CACHE, commit, write_result
from benchmarks.scaling_data import SEED
from benchmarks.scaling_memory import memory
from benchmarks.scaling_model import job
from benchmarks.scaling_plots import draw
from merger_plugins._session import usable_threads

KEPT = CACHE / "scaling"

PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    "rivals": lambda scale: parts.beside_rivals(int(40_000 * scale)),
    "roofline": lambda scale: parts.roofline(int(200_000 * scale)),
    "curves": parts.curves,
    "turns": lambda scale: parts.turns(int(1_000_000 * scale)),
    "synthesizer": lambda scale: parts.synthesizer(int(20_000 * scale)),
    "memory": memory,
    "job": job,
}


def bars(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was asked for, and what was found."""
    roofline, turns = figures["roofline"], figures["turns"]["calibrated"]
    dominant = roofline["stages"][roofline["dominant stage"]]
    found = {
        "calibrated merger, vectors a second": (roofline["merge_many, vectors a second"], ">=", 200_000),
        "its dominant stage, share of the roofline": (dominant["share of the roofline"], ">=", 0.5),
        "synthesizer, share of a bare session": (
            figures["synthesizer"]["share of the bare session"],
            ">=",
            0.7,
        ),
        "append and root, the longest over the shortest": (turns["last over first"], "<=", 2.0),
        "compact state, bytes at the most": (turns["largest compact state, bytes"], "<=", 65_536),
    }
    return {
        name: {
            "measured": value,
            "bar": f"{sign} {bar:,}",
            "met": bool(value >= bar if sign == ">=" else value <= bar),
        }
        for name, (value, sign, bar) in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), help="only these")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of vectors; 1 is kept")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale: float = arguments.scale
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](scale)))
        return 0
    if scale == 1 and (narrow := _narrowed()):
        raise SystemExit(f"Figures that are kept are of the whole machine, and {narrow}.")
    KEPT.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    for name in arguments.parts or PARTS:
        figures[name] = _in_a_process(name, scale)
        print(name, json.dumps(figures[name], indent=2), flush=True)
        if scale == 1:
            kept = {"commit": commit(), "figures": figures[name]}
            (KEPT / f"{name}.json").write_text(json.dumps(kept), encoding="utf-8")
    if scale == 1:
        known = {
            name: json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
            for name in PARTS
            if (KEPT / f"{name}.json").exists()
        }
        figures = {name: kept["figures"] for name, kept in known.items()}
        commits = {name: kept["commit"] for name, kept in known.items()}
    missing = [name for name in PARTS if name not in figures]
    if missing:
        print(f"To be measured before a result is written: {', '.join(missing)}.")
        return 0
    figures["bars"] = bars(figures)
    print(json.dumps(figures["bars"], indent=2))
    if scale == 1:
        figures = {"measured at commit": commits, **figures}
        print(write_result("scaling", seed=SEED, data={"vectors": "synthetic"}, figures=figures))
        print(*draw(figures), sep="\n")
    return 0 if all(bar["met"] for bar in figures["bars"].values()) else 1


def _narrowed() -> str | None:
    """What keeps this process from using all processors; None for nothing."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if name in os.environ:
            return f"{name} is set"
    here, all_of_them = usable_threads(), os.cpu_count() or 1
    return f"this process may use {here} of {all_of_them} processors" if here < all_of_them else None


def _in_a_process(name: str, scale: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--part", name, "--scale", str(scale)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{name} failed:\n{run.stderr}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
