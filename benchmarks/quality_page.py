"""docs/quality.html: the report on a small run over the sample documents, whose texts may be published.

Run ``python -m benchmarks.quality_page``. It needs no data beside the package and takes a minute or two.
FINESSE's probes are paragraphs here, as sixteen articles are too few: those of one document are not
independent, and the page says so.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

from merger_plugins.demo.questions import CORPUS
from merger_plugins.demo.tasks import demo_tasks
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.finesse.bench import Bench, chosen_rivals
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.plan import BenchSettings
from merger_plugins.finesse.probes import Article, choose_probes, embed_probes
from merger_plugins.finesse.report import dissect, write
from merger_plugins.finesse.rivals import rivals
from merger_plugins.finesse.run import run_finesse
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.synthesis import MergerSynthesis
from merger_plugins.finesse.tasks import Source

PAGE = Path("docs/quality.html")
MERGERS = ("mean, unweighted", "mean", "calibrated")
SEARCHED = ("truncation", *MERGERS, "every chunk", "every chunk, fused")
AXES = BenchSettings(
    axes=("retrieval", "extrapolation", "associativity", "order", "robustness", "cost"),
    trees=50,
    recut=False,
)
FINESSE = FinesseSettings(
    lengths=(4, 8, 16, 32), samples=7, order_lengths=(4, 8), order_samples=3, order_group=10
)
TAKEN_APART = 2
"""Samples of each length."""

NOTE = (
    "A small run on the sixteen sample documents of the package, made to show the report: too small to "
    "rank mergers by. Embedder: the bundled all-MiniLM-L6-v2 with 8-bit weights. FINESSE merges {probes} "
    "paragraphs of these documents, whose mean cosine is {cosine:.3f}: they are not quite independent, so "
    "scores are lower than on unrelated articles. It gives all chunks the same mass, so both means are "
    "the same there. The calibrated merger has the statistics of what it merges: of the documents' "
    "chunks, and for FINESSE of the paragraphs. Times are of a machine that had other work. Made by "
    "python -m benchmarks.quality_page."
)


def paragraphs() -> list[Article]:
    """Each paragraph of the sample documents as an article."""
    return [
        Article(f"{path.stem}, paragraph {number}", "en", text)
        for path in sorted(CORPUS.iterdir())
        if path.suffix in (".md", ".txt")
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n\n"), 1)
    ]


def main(page: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tasks = [task for task in demo_tasks(Path(folder)) if task.kind == "retrieval"]
        entries = chosen_rivals([], MiniLMEmbedder.dimension, quick=False, names=SEARCHED)
        bench = Bench(AXES, tasks, Source(Path(folder), Embeddings()), entries)
        axes = bench.measure(Path(folder, "axes.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these probes are not independent is what the note says
        probes = embed_probes(choose_probes(paragraphs(), FINESSE.probes))
    runs, names, samples = [], {}, []
    for rival in rivals(MERGERS):
        merger = rival.merger([probes.vectors[row : row + 1] for row in range(len(probes))])
        assert merger is not None
        names[merger.fingerprint] = rival.name
        runs.append(run_finesse(merger, probes, FINESSE))
        synthesis = MergerSynthesis(merger, probes)
        samples += dissect(rival.name, synthesis, len(probes), FINESSE, samples=TAKEN_APART)
    write(
        [axes, *runs],
        page,
        anatomy=samples,
        texts=probes.probes.texts,
        names=names,
        title="Quality of merged vectors: the sample documents",
        note=NOTE.format(probes=len(probes), cosine=probes.mean_cosine),
    )
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    main(parser.parse_args().page)
