"""Tables of benchmarks/results/bench.json, a full run of ``merger-plugins bench``."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, table
from merger_plugins.finesse.report.figures import limit_of

LENGTHS = (4, 16, 64)
LONGEST = LENGTHS[-1]


def tables() -> dict[str, str]:
    document = json.loads((RESULTS / "bench.json").read_text(encoding="utf-8"))
    return {"finesse": finesse(document)}


def finesse(document: dict[str, Any]) -> str:
    """Every merger's balanced scores with half of their 95% intervals; td, bu and order beside them."""

    def found(rival: str, metric: str, length: int) -> dict[str, Any] | None:
        records = document["steps"][f"finesse, {rival}"]["records"]
        return next((row for row in records if (row["metric"], row["at"]) == (metric, length)), None)

    def score(row: dict[str, Any] | None) -> str:
        return f"{row['value']:.0f} ± {(row['high'] - row['low']) / 2:.0f}" if row else ""

    def part(row: dict[str, Any] | None) -> str:
        return f"{row['value']:.3f}" if row else ""

    rivals = [name.removeprefix("finesse, ") for name in document["steps"] if name.startswith("finesse, ")]
    return table(
        ("merger", *(f"{length} chunks" for length in LENGTHS), "td at 64", "bu at 64", "SRS at 4"),
        *(
            (
                rival,
                *(score(found(rival, "finesse", length)) for length in LENGTHS),
                *(part(found(rival, name, LONGEST)) for name in ("td", "bu")),
                score(found(rival, "srs", LENGTHS[0])),
            )
            for rival in rivals
        ),
        (
            "*limit: equal parts of orthogonal chunks*",
            *(f"{limit_of('finesse', length):.0f}" for length in LENGTHS),
            *(f"{limit_of(name, LONGEST):.3f}" for name in ("td", "bu")),
            "0",
        ),
    )
