"""Does retrieval hold when texts are cut differently, and when chunks are stored that do not belong?

Every figure is the retrieval of documents, at one setting of what is varied; the setting without any change
is measured beside them, so that the loss can be read off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.chunking import Chunk, Chunker, SentenceChunker
from merger_plugins.errors import DimensionError, InputError
from merger_plugins.finesse.axes.retrieval import retrieval
from merger_plugins.finesse.collections import Collection, Ints, joined
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.follow_ups import tokens
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival
from merger_plugins.finesse.tasks import Source, Task

AXIS = "robustness"
METRICS = ("ndcg@10",)
SIZES = (30, 50, 100, 200, 400)
OVERLAPS = (0.0, 0.25, 0.5)
SHARES = (0.0, 0.01, 0.05, 0.1)
COPIES = (1, 3, 10)
COPIED = 0.1
"""Of a document's chunks."""

JUNK = (
    "Home | About us | Contact | Sign in | Register",
    "This website uses cookies to give you the best experience. Accept all cookies or change your settings.",
    "All rights reserved. No part of this publication may be reproduced without written permission.",
    "Subscribe to our newsletter and never miss an update. You can unsubscribe at any time.",
    "Page 3 of 12",
    "Share this article on social media. Print this page. Send it to a friend.",
    "Figure 1. Table 2. See text for details.",
    "Advertisement. Scroll down to continue reading.",
    "This document is confidential and intended only for the persons it is addressed to.",
    "Loading, please wait. If the page does not appear, enable JavaScript in your browser.",
)
"""What comes along when pages are scraped."""


@dataclass(frozen=True)
class OverlappingChunker:
    """Chunks that begin with the end of the one before, as some splitters make them.

    Attributes:
        chunker: cuts first.
        share: of a chunk's characters, that it takes from before it, at a space; from 0 to below 1. Its
            tokens grow in proportion.
    """

    chunker: Chunker
    share: float

    def split(self, text: str) -> list[Chunk]:
        """The chunks of a text; raises as the chunker's."""
        if not 0 <= self.share < 1:
            raise InputError(f"share is {self.share}; an overlap is from 0 to below 1.")
        found = []
        for chunk in self.chunker.split(text):
            length = chunk.end - chunk.start
            start = max(0, chunk.start - round(length * self.share))
            space = text.find(" ", start, chunk.start)
            start = start if start == 0 or space < 0 else space + 1
            grown = round(chunk.tokens * (chunk.end - start) / length)
            found.append(Chunk(text[start : chunk.end], start, chunk.end, max(grown, 1)))
        return found


def chunk_sizes(
    rivals: Sequence[Rival], task: Task, source: Source, *, sizes: Sequence[int] = SIZES, seed: int = 0
) -> list[Record]:
    """Documents cut into chunks of about so many tokens, and embedded again; raises as `Task.load`."""
    records = []
    for size in sizes:
        collection = task.collection(source.cut_by(SentenceChunker(size)))
        records += _measured(rivals, collection, "tokens of a chunk", size, seed)
    return records


def overlaps(
    rivals: Sequence[Rival], task: Task, source: Source, *, shares: Sequence[float] = OVERLAPS, seed: int = 0
) -> list[Record]:
    """Chunks that begin with the end of the one before, embedded again; raises as `Task.load`."""
    records = []
    for share in shares:
        chunker = OverlappingChunker(source.chunker, share) if share else source.chunker
        records += _measured(rivals, task.collection(source.cut_by(chunker)), "overlap", share, seed)
    return records


def junk(
    rivals: Sequence[Rival],
    collection: Collection,
    embed: Embeddings,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> list[Record]:
    """Chunks of `JUNK` at random places, so many for each chunk of a document.

    Raises:
        DimensionError: a merger, or the embedder, has another dimension than the collection.
    """
    vectors, masses = embed("junk", JUNK), tokens(JUNK)
    if vectors.shape[1] != collection.chunks.shape[1]:
        raise DimensionError(
            f"The embedder gives dimension {vectors.shape[1]}, and the chunks of {collection.name} have "
            f"{collection.chunks.shape[1]}. Pass the embedder that made them."
        )

    def strange(rng: np.random.Generator, _document: int, count: int) -> tuple[Matrix, Vector]:
        rows = rng.integers(len(vectors), size=count)
        return vectors[rows], masses[rows]

    return [
        record
        for share in shares
        for record in _measured(
            rivals, with_inserted(collection, share, strange, seed), "share of junk", share, seed
        )
    ]


def foreign(
    rivals: Sequence[Rival], collection: Collection, *, shares: Sequence[float] = SHARES, seed: int = 0
) -> list[Record]:
    """Chunks of other documents at random places, so many for each chunk of a document.

    Raises:
        InputError: the collection has one document, or a merger has another dimension.
    """
    return [
        record
        for share in shares
        for record in _measured(
            rivals, with_foreign(collection, share, seed), "share of foreign chunks", share, seed
        )
    ]


def copies(
    rivals: Sequence[Rival], collection: Collection, *, times: Sequence[int] = COPIES, seed: int = 0
) -> list[Record]:
    """A tenth of each document's chunks, drawn once, stored so many times in a row."""
    rng = np.random.default_rng(seed)
    copied = rng.random(len(collection.document)) < COPIED
    return [
        record
        for count in times
        for record in _measured(
            rivals, repeated(collection, np.where(copied, count, 1)), "times a tenth is stored", count, seed
        )
    ]


def languages(rivals: Sequence[Rival], collections: Sequence[Collection], *, seed: int = 0) -> list[Record]:
    """The documents of more and more collections stored together; the questions are always the first's.

    Raises:
        InputError: no collection, or several dimensions.
    """
    first = collections[0].name if collections else ""
    return [
        record
        for count in range(1, max(len(collections), 1) + 1)
        for record in _measured(rivals, joined(collections[:count], first), "languages", count, seed)
    ]


Strange = Callable[[np.random.Generator, int, int], tuple[Matrix, Vector]]
"""(random numbers, document, count) -> so many vectors and masses that do not belong to the document."""


def with_inserted(collection: Collection, share: float, strange: Strange, seed: int) -> Collection:
    """A collection without text, with strange chunks at random places of its documents.

    Args:
        collection: what is changed.
        share: strange chunks for each of a document's own; a fraction of one is rounded at random.
        strange: gives them.
        seed: of numbers, places and what `strange` draws.
    """
    rng = np.random.default_rng(seed)
    chunks, masses, document = [], [], []
    for index, (part, mass) in enumerate(
        zip(collection.sequences(), collection.sequence_masses(), strict=True)
    ):
        count = int(np.floor(share * len(part) + rng.random()))
        if count:
            vectors, weights = strange(rng, index, count)
            places = rng.integers(len(part) + 1, size=count)
            part, mass = np.insert(part, places, vectors, axis=0), np.insert(mass, places, weights)
        chunks.append(part)
        masses.append(mass)
        document.append(np.full(len(part), index))
    return collection.with_chunks(np.concatenate(chunks), np.concatenate(document), np.concatenate(masses))


def with_foreign(collection: Collection, share: float, seed: int) -> Collection:
    """As `with_inserted`, the strange chunks being those of other documents.

    Raises:
        InputError: there is one document.
    """
    if collection.documents < 2:
        raise InputError(f"{collection.name} has one document; chunks of other ones need at least two.")

    def others(rng: np.random.Generator, document: int, count: int) -> tuple[Matrix, Vector]:
        rows = rng.choice(np.flatnonzero(collection.document != document), count)
        return collection.chunks[rows], collection.masses[rows]

    return with_inserted(collection, share, others, seed)


def repeated(collection: Collection, counts: Ints) -> Collection:
    """A collection without text, with each chunk so many times in a row.

    Args:
        collection: what is changed.
        counts: (c,) from 1 on.
    """
    rows = np.repeat(np.arange(len(collection.document)), counts)
    return collection.with_chunks(collection.chunks[rows], collection.document[rows], collection.masses[rows])


def _measured(
    rivals: Sequence[Rival], collection: Collection, along: str, at: float, seed: int
) -> list[Record]:
    return [
        replace(record, axis=AXIS, along=along, at=float(at))
        for record in retrieval(rivals, collection, metrics=METRICS, seed=seed)
        if record.metric in METRICS
    ]
