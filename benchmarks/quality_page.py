"""docs/quality.html: the report on a small run over the sample documents, whose texts may be published.

Run ``python -m benchmarks.quality_page``. It needs no data beside the package and takes about a minute.
Retrieval, extrapolation, associativity and cost are those of the sixteen documents and their questions.
FINESSE's probes are paragraphs, as sixteen articles are too few: those of one document are not independent.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from merger_plugins.chunking import SentenceChunker
from merger_plugins.demo.questions import CORPUS, load_questions
from merger_plugins.finesse.axes.associativity import associativity
from merger_plugins.finesse.axes.cost import cost
from merger_plugins.finesse.axes.extrapolation import extrapolation
from merger_plugins.finesse.axes.retrieval import retrieval
from merger_plugins.finesse.collections import Collection, Text
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.probes import Article, choose_probes, embed_probes
from merger_plugins.finesse.report import dissect, write
from merger_plugins.finesse.rivals import rivals
from merger_plugins.finesse.run import run_finesse
from merger_plugins.finesse.settings import FinesseSettings
from merger_plugins.finesse.synthesis import MergerSynthesis

PAGE = Path("docs/quality.html")
MERGERS = ("mean, unweighted", "mean", "calibrated")
SEARCHED = ("truncation", *MERGERS, "every chunk", "every chunk, fused")
SETTINGS = FinesseSettings(
    lengths=(4, 8, 16, 32), samples=7, order_lengths=(4, 8), order_samples=3, order_group=10
)
TAKEN_APART = 2
"""Samples of each length."""

NOTE = (
    "A small run on the sixteen sample documents of the package, made to show what the report looks like: "
    "too small to rank mergers by. Embedder: the bundled all-MiniLM-L6-v2 with 8-bit weights. Retrieval "
    "asks {questions} questions. FINESSE merges paragraphs of these documents, {probes} of them, whose "
    "mean cosine is {cosine:.3f}: they are not quite independent, so its scores are lower than on "
    "unrelated articles, and it gives all chunks the same mass, so both means are the same there. The "
    "calibrated merger is calibrated on the chunks of the documents. Made by python -m "
    "benchmarks.quality_page."
)


def collection(embed: Embeddings) -> Collection:
    """The sample documents with their questions."""
    paths = documents()
    texts = [path.read_text(encoding="utf-8") for path in paths]
    split = [SentenceChunker().split(text) for text in texts]
    chunks = [chunk for part in split for chunk in part]
    questions, _ = load_questions()
    index = {path.name: number for number, path in enumerate(paths)}
    gold = np.array([index[question.document] for question in questions], np.int64)
    asked = tuple(question.question for question in questions)
    return Collection(
        name="sample documents",
        revision="0.1.0",
        chunks=embed("chunks", [chunk.text for chunk in chunks]),
        document=np.repeat(np.arange(len(texts)), [len(part) for part in split]),
        masses=np.array([max(chunk.tokens, 1) for chunk in chunks], np.float32),
        queries=embed.queries("questions", asked),
        relevant=gold[:, None] == np.arange(len(texts)),
        group=gold,
        text=Text(tuple(texts), np.array([(c.start, c.end) for c in chunks], np.int64), asked, embed),
    )


def documents() -> list[Path]:
    """The files of the sample documents."""
    return sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))


def paragraphs() -> list[Article]:
    """Each paragraph of the sample documents as an article."""
    return [
        Article(f"{path.stem}, paragraph {number}", "en", text)
        for path in documents()
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n\n"), 1)
    ]


def main(page: Path) -> None:
    here = collection(Embeddings())
    searched, mergers = rivals(SEARCHED), rivals(MERGERS)
    records = retrieval(searched, here, levels=("documents", "sections"))
    records += extrapolation(mergers, here, lengths=(4, 8, 16, 32))
    records += associativity(mergers, here)
    records += cost(mergers, here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these probes are not independent is what the note says
        probes = embed_probes(choose_probes(paragraphs(), SETTINGS.probes))
    runs, names, samples = [], {}, []
    for rival in mergers:
        merger = rival.merger(here.sequences())
        assert merger is not None
        names[merger.fingerprint] = rival.name
        runs.append(run_finesse(merger, probes, SETTINGS))
        synthesis = MergerSynthesis(merger, probes)
        samples += dissect(rival.name, synthesis, len(probes), SETTINGS, samples=TAKEN_APART)
    note = NOTE.format(questions=len(here.queries), probes=len(probes), cosine=probes.mean_cosine)
    write(
        [*runs, *records],
        page,
        anatomy=samples,
        texts=probes.probes.texts,
        names=names,
        title="Quality of merged vectors: the sample documents",
        note=note,
    )
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    main(parser.parse_args().page)
