"""``python -m onnx_export background``: the folder of the bundled merger, with its background covariance."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merger_plugins import Background, CalibratedMerger, load_embedder
from merger_plugins.chunking import SentenceChunker

SEED = 0


@dataclass(frozen=True)
class Part:
    """Texts of one kind, of which the background takes a sample.

    Attributes:
        file: below the data folder.
        texts: how many articles or conversations are drawn.
        pieces: how many chunks or turns of each are taken at the most.
    """

    file: str
    texts: int
    pieces: int


PARTS = (
    Part("train/wiki_en_articles.jsonl.gz", 300, 80),
    Part("train/us_speeches_en.jsonl.gz", 124, 70),
    Part("train/techdocs_multilingual.jsonl.gz", 150, 50),
    Part("conv/topicalchat_train.jsonl.gz", 400, 30),
)
"""Each counts alike: encyclopaedia, speech, documentation in several languages, and talk."""


def release(data: Path, out: Path) -> Path:
    """Embed a sample of each part and write the bundled merger's folder, with a card."""
    embedder = load_embedder()
    total = np.zeros((embedder.dimension, embedder.dimension))
    lines = []
    for part in PARTS:
        texts = list(_pieces(data / part.file, part))
        vectors = embedder.embed_documents(texts).astype(np.float64)
        total += vectors.T @ vectors / len(vectors) / len(PARTS)
        digest = hashlib.sha256((data / part.file).read_bytes()).hexdigest()[:16]
        lines.append(f"| {part.file} | {digest} | {len(texts):,} |")
        print(lines[-1], flush=True)
    merger = CalibratedMerger(background=Background(total), embedder=embedder.name)
    folder = merger.save(out)
    (folder / "README.md").write_text(_CARD.format(lines="\n".join(lines), seed=SEED), encoding="utf-8")
    return folder


def _pieces(path: Path, part: Part) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        rows: list[dict[str, Any]] = [json.loads(line) for line in handle]
    chunker = SentenceChunker()
    for index in np.random.default_rng(SEED).permutation(len(rows))[: part.texts]:
        row = rows[index]
        if "turns" in row:
            yield from (f"{turn['speaker']}: {turn['text']}" for turn in row["turns"][: part.pieces])
        else:
            yield from (chunk.text for chunk in chunker.split(row["text"])[: part.pieces])


_CARD = """\
# calibrated-all-MiniLM-L6-v2

The bundled merger: `CalibratedMerger` with what is known of all-MiniLM-L6-v2's chunk vectors before it has
seen any of yours. It holds one array, `second_moment` (384, 384): the mean outer product of the unit vectors
of text of four kinds, each kind counting alike. No text can be recovered from it. Licence: Apache-2.0.

`merger.calibrated(sample)` mixes it with your collection's own covariance, in which it
counts as 30 to 2,000 vectors: the fewer, the less your text resembles these.

| text | SHA-256 | chunks |
|---|---|---|
{lines}

Made by `python -m onnx_export background --data FOLDER`, seed {seed}.
"""
