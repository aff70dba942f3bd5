"""The ways of searching that the demo compares, each over the same chunk vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from merger_plugins._types import Matrix, Vector
from merger_plugins.chunking import Chunk, SentenceChunker
from merger_plugins.demo.ranking import Scores, best_of_each
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.errors import EmptyInputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores.documents import Document
from merger_plugins.stores.search import SearchLevel

METHODS: Final = {
    "truncation": "first 510 tokens",
    "mean": "mean of the chunks",
    "root": "calibrated root",
    "chunks": "chunk search",
    "chunks+mean": "chunks + mean sections, root",
    "contextual": "contextual chunk search",
    "chunks+root": "chunks + calibrated sections, root",
}
"""Name and description of each, those that give documents alone first."""

_DOCUMENTS_ONLY = ("truncation", "mean", "root")
_TEXTS_AT_ONCE = 64

Progress = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents, cut and embedded.

    Attributes:
        ids: of the documents.
        chunks: of each document, in reading order.
        vectors: (n_i, d) of each document.
        beginnings: (documents, d) the embedding of each text as far as the embedder reads.
    """

    ids: list[str]
    chunks: list[list[Chunk]]
    vectors: list[Matrix]
    beginnings: Matrix

    @property
    def owners(self) -> NDArray[np.int64]:
        """(chunks of all documents,) index of the document that each belongs to."""
        return np.repeat(np.arange(len(self.ids)), [len(own) for own in self.chunks])

    @property
    def masses(self) -> list[NDArray[np.float32]]:
        """Tokens of each document's chunks."""
        return [np.array([max(chunk.tokens, 1) for chunk in own], np.float32) for own in self.chunks]

    def index(self, document: int, position: int) -> int:
        """The index of a chunk among the chunks of all documents."""
        return sum(len(own) for own in self.chunks[:document]) + position


def cut(texts: Sequence[str], embedder: MiniLMEmbedder) -> list[list[Chunk]]:
    """The chunks of each text, as the store cuts them."""
    chunker = SentenceChunker(count_tokens=embedder.count_tokens)
    return [chunker.split(text) for text in texts]


def embed(texts: Sequence[str], embedder: MiniLMEmbedder, progress: Progress) -> Matrix:
    """(n, d) vectors of texts; `progress` is told how many more are done."""
    parts = [np.zeros((0, embedder.dimension), np.float32)]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        parts.append(embedder.embed_documents(part))
        progress(len(part))
    return np.concatenate(parts)


def embed_corpus(
    documents: Sequence[tuple[str, str]],
    chunks: Sequence[list[Chunk]],
    embedder: MiniLMEmbedder,
    progress: Progress,
) -> Corpus:
    """Embed each chunk, and the beginning of each document.

    Args:
        documents: (id, text).
        chunks: of each, by `cut`.
        embedder: the base embedder.
        progress: told how many more texts are done.
    """
    flat = embed([chunk.text for own in chunks for chunk in own], embedder, progress)
    bounds = np.cumsum([len(own) for own in chunks])[:-1]
    beginnings = embed([text for _, text in documents], embedder, progress)
    return Corpus([name for name, _ in documents], list(chunks), np.split(flat, bounds), beginnings)


@dataclass(frozen=True, eq=False)
class Found:
    """How one way of searching scores everything for one query; larger is better.

    Attributes:
        documents: (documents,), by their best chunk where chunks are searched.
        chunks: (chunks of all documents,); None where documents alone are.
    """

    documents: Scores
    chunks: Scores | None = None


class Methods:
    """Every way of searching over one corpus, in embedded Qdrant collections that live in memory.

    A context manager. One collection is written by the mean merger, one by the calibrated merger, and one by
    the same with contextual chunk vectors; searches go through the ingestion hook.

    Args:
        corpus: what is searched.
        merger: the merger to calibrate.

    Attributes:
        seconds: how long each step took.
        merger: the calibrated merger.
        merged: how many merged vectors (sections and roots) the calibrated collection holds.
    """

    def __init__(self, corpus: Corpus, merger: SequenceMerger) -> None:
        self._corpus = corpus
        self._roots = {name: index for index, name in enumerate(corpus.ids)}
        starts = np.cumsum([0, *(len(own) for own in corpus.chunks)])
        self._starts = dict(zip(corpus.ids, starts.tolist(), strict=False))
        self.seconds: dict[str, float] = {}
        with ExitStack() as stack:
            self._mean, self._plain, self._contextual = (
                stack.enter_context(store)
                for store in (
                    QdrantStore(":memory:", merger=MeanMerger()),
                    QdrantStore(":memory:", merger=merger),
                    QdrantStore(":memory:", merger=merger, contextual=True),
                )
            )
            self._fill()
            self._stack = stack.pop_all()
        self.merger = self._plain.merger
        self.merged = sum(self._plain.inspect().sections.values()) + len(corpus.ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _fill(self) -> None:
        stores = (self._mean, self._plain, self._contextual)
        began = time.perf_counter()
        for store in stores:
            fill(store, self._corpus)
        ingested = time.perf_counter()
        for store in stores[1:]:
            store.calibrate()
        calibrated = time.perf_counter()
        self._plain.merger.merge_many(self._corpus.vectors, masses=self._corpus.masses)
        merged = time.perf_counter()
        self.seconds = {
            "ingest": ingested - began,
            "calibrate": calibrated - ingested,
            "merge": merged - calibrated,
        }

    def search(self, query: Vector) -> dict[str, Found]:
        """Score everything for a query (d,), in the order of `METHODS`."""
        found = {
            "truncation": Found(self._corpus.beginnings @ query),
            "mean": self._documents(self._mean, query),
            "root": self._documents(self._plain, query),
            "chunks": self._chunks(self._plain, query, "chunk"),
            "chunks+mean": self._chunks(self._mean, query, "fused"),
            "contextual": self._chunks(self._contextual, query, "contextual"),
            "chunks+root": self._chunks(self._plain, query, "fused"),
        }
        return {name: found[name] for name in METHODS}

    def vectors(self, method: str) -> float:
        """How many stored vectors a document the method searches, on average."""
        documents = len(self._corpus.ids)
        if method in _DOCUMENTS_ONLY:
            return 1.0
        chunks = len(self._corpus.owners)
        return (chunks + (self.merged if "+" in method else 0)) / documents

    def _documents(self, store: QdrantStore, query: Vector) -> Found:
        scores = np.full(len(self._roots), -np.inf, np.float32)
        for hit in store.search(query, len(self._roots), "document"):
            scores[self._roots[hit.document_id or ""]] = hit.score
        return Found(scores)

    def _chunks(self, store: QdrantStore, query: Vector, level: SearchLevel) -> Found:
        owners = self._corpus.owners
        scores = np.full(len(owners), -np.inf, np.float32)
        for hit in store.search(query, len(owners), level):
            scores[self._starts[hit.document_id or ""] + (hit.position or 0)] = hit.score
        return Found(best_of_each(scores, owners, len(self._roots)), scores)


def fill(store: QdrantStore, corpus: Corpus) -> None:
    """Store a corpus with the vectors that it has.

    Raises:
        EmptyInputError: the corpus is empty.
        MergerError: a document cannot be stored.
    """
    if not corpus.ids:
        raise EmptyInputError("There is no document to search in.")
    documents = [
        Document(name, chunks=[chunk.text for chunk in chunks], vectors=vectors, masses=masses)
        for name, chunks, vectors, masses in zip(
            corpus.ids, corpus.chunks, corpus.vectors, corpus.masses, strict=True
        )
    ]
    for result in store.ingest_many(documents):
        if result.error is not None:
            raise result.error
