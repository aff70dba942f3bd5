"""Processes that write into a store and are killed: what the store went through without harm.

Run ``python -m benchmarks.kills``. A child process ingests, appends, extends, replaces, removes and deletes
in an embedded folder until SIGKILL ends it, half of the time between two changes of points, else at a random
moment. Then the folder is opened, the call that was cut off is repeated, `verify` must find nothing, and
every chunk, section and root must equal the merges made from scratch; a difference ends the run without a
result. ``chroma-saving`` is a Chroma folder that saves its index every ten points, as that of a large
collection does every thousand: a kill may tear the index there, which must be told. Writes
benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.common import write_result
from tests.stores.killing import SEED, STORES, survive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="of each store")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--dry", action="store_true", help="print, and write no result file")
    arguments = parser.parse_args()
    figures: dict[str, object] = {"versions": {"chromadb": version("chromadb")}}
    for name in arguments.stores:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = asdict(survive(name, Path(folder), arguments.kills))
        print(name, json.dumps(figures[name]), flush=True)
    if not arguments.dry:
        write_result("kills", seed=SEED, data={}, figures=figures)


if __name__ == "__main__":
    main()
