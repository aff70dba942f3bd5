"""The sample documents as data for the benchmark, for those who have no other data at hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from merger_plugins.demo.questions import CORPUS, load_questions
from merger_plugins.finesse.embedding import revision
from merger_plugins.finesse.tasks import Task

NAME: Final = "demo"

_ABOUT = ("all", "ndcg@10", "en", "Apache-2.0", "the sample documents of this package")


def demo_tasks(folder: Path) -> list[Task]:
    """Write the sample documents and their questions as data files.

    Sixteen documents and 38 questions: enough to see how everything works, too few to tell mergers apart.

    Args:
        folder: the data folder; it is made.

    Returns:
        Their retrieval, and their texts as articles for FINESSE.
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
    files = tuple(f"{NAME}/{part}.jsonl.gz" for part in rows)
    for file, part in zip(files, rows.values(), strict=True):
        _write(folder / file, part)
    written = [folder / file for file in files]
    return [
        Task(f"{NAME}-articles", "articles", files[:1], revision(written[:1]), *_ABOUT),
        Task(NAME, "retrieval", files, revision(written), *_ABOUT),
    ]


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """The same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
