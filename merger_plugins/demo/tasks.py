"""The sample documents as data for the benchmark, for those who have no other data at hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from merger_plugins.demo.questions import CORPUS, load_questions
from merger_plugins.finesse.tasks import Task, tasks_of_folder

NAME: Final = "demo"


def demo_tasks(folder: Path) -> list[Task]:
    """Write the sample documents and their questions as data files.

    Sixteen documents and 38 questions: enough to see how everything works, too few to tell mergers apart.

    Args:
        folder: the data folder; they get one of their own in it.

    Returns:
        Their texts as articles for FINESSE, and their retrieval.
    """
    sources = [path for path in sorted(CORPUS.iterdir()) if path.suffix in (".md", ".txt")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    asked, _ = load_questions()
    names = [f"q{number}" for number in range(len(asked))]
    rows: dict[str, list[dict[str, object]]] = {
        "docs": [{"id": name, "lang": "en", "title": name, "text": text} for name, text in texts.items()],
        "queries": [{"id": name, "text": row.question} for name, row in zip(names, asked, strict=True)],
        "qrels": [
            {
                "query_id": name,
                "doc_id": row.document,
                "passage": texts[row.document].partition(row.passage)[0].count("\n\n"),
            }
            for name, row in zip(names, asked, strict=True)
        ],
    }
    for part, written in rows.items():
        _write(folder / NAME / f"{part}.jsonl.gz", written)
    return [
        replace(task, language="en", licence="Apache-2.0", source="the sample documents of this package")
        for task in tasks_of_folder(folder / NAME)
    ]


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """The same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
