"""Puts the page together: one HTML file with its data, style and scripts inside."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from merger_plugins._extras import require
from merger_plugins.errors import EmptyInputError, InputError
from merger_plugins.finesse.files import write_whole
from merger_plugins.finesse.report.anatomy import Sample
from merger_plugins.finesse.report.figures import labels, limits, low_is_good
from merger_plugins.finesse.report.reading import Result, read
from merger_plugins.finesse.rivals import LIMIT, OWN_LIMIT, rivals

TITLE: Final = "Quality of merged vectors"

_ASSETS = files("merger_plugins") / "finesse" / "report"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write(
    results: Iterable[Result],
    path: str | os.PathLike[str],
    *,
    anatomy: Iterable[Sample] = (),
    texts: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    title: str = TITLE,
    note: str = "",
) -> Path:
    """Write the page.

    Args:
        results: files of `bench` or of FINESSE, their runs, and records of the axes.
        path: of the page; its folder is made where it is missing.
        anatomy: samples to look into, of `dissect`.
        texts: of all probes, by number; None shows their numbers alone. What is given here can be read by
            whoever gets the page.
        names: what to call mergers, by fingerprint, in runs of FINESSE alone; otherwise they have the name
            of their class.
        title: of the page.
        note: what was run, in a sentence or two.

    Returns:
        Where it was written.

    Raises:
        EmptyInputError: nothing to show.
        InputError: a sample has probes that `texts` does not have, or a result is none.
        ResultError: a file is missing, damaged or was edited.
        MissingExtraError: plotly is not installed.
    """
    contents = read(results, names)
    samples = list(anatomy)
    if not contents.records and not samples:
        raise EmptyInputError("There is nothing to show: pass at least one result or sample.")
    shown = _texts(samples, texts)
    page = _page(
        title,
        note,
        {
            "records": [record.to_dict() for record in contents.records],
            "limits": [record.to_dict() for record in limits(contents.records)],
            "runs": contents.runs,
            "about": {rival.name: rival.about for rival in rivals()} | contents.about,
            "labels": labels({one.metric for one in contents.records}),
            "limitNames": [LIMIT, OWN_LIMIT],
            "lowIsGood": sorted({one.metric for one in contents.records if low_is_good(one.metric)}),
            "samples": [sample.to_dict() for sample in samples],
            "texts": shown,
        },
    )
    write_whole(page, path)
    return Path(path)


def _texts(samples: Sequence[Sample], texts: Sequence[str] | None) -> dict[str, str]:
    """Of the probes that are shown, by number."""
    if texts is None:
        return {}
    numbers = sorted({int(number) for sample in samples for number in sample.chunks})
    if numbers and numbers[-1] >= len(texts):
        raise InputError(
            f"{len(texts)} texts arrived, and a sample has probe {numbers[-1]}. Pass the texts of all probes."
        )
    return {str(number): texts[number] for number in numbers}


def _page(title: str, note: str, data: Mapping[str, Any]) -> str:
    plotly = require("plotly.offline", extra="bench", purpose="The report")
    parts = {
        "title": html.escape(title),
        "note": html.escape(note),
        "style": _asset("page.css"),
        "data": _in_script(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        "plotly": plotly.get_plotlyjs(),
        "script": "\n".join(_asset(name) for name in ("common.js", "figures.js", "anatomy.js")),
    }
    return _PLACE.sub(lambda place: parts[place[1]], _asset("page.html"))


def _in_script(text: str) -> str:
    """JSON that no HTML parser can take for the end of its script."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
