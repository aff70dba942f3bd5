"""The demo's figures: ranks of the right answers on the sample documents and the sample chat."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merger_plugins._types import Matrix
from merger_plugins.demo.methods import METHODS, Corpus, Methods
from merger_plugins.demo.questions import ChatQuestion, DocumentQuestion
from merger_plugins.demo.ranking import mean_reciprocal_rank, passage_chunk, rank
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.errors import InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.qdrant import QdrantStore

BYTES_A_NUMBER = 4


@dataclass(frozen=True)
class Ranks:
    """Where the right answers stand, from 1; `passage` is None where only documents are searched."""

    document: int
    passage: int | None = None


@dataclass(frozen=True)
class QuestionRanks:
    """One question and the ranks of its answers by each method."""

    question: DocumentQuestion
    ranks: dict[str, Ranks]


@dataclass(frozen=True)
class Summary:
    """One method over all questions.

    Attributes:
        method: its name in `METHODS`.
        document: mean reciprocal rank of the right document.
        passage: that of the chunk that holds the answer; None where only documents are searched.
        vectors: stored vectors a document that it searches.
        kilobytes: of these vectors, as float32.
    """

    method: str
    document: float
    passage: float | None
    vectors: float
    kilobytes: float


@dataclass(frozen=True)
class DocumentComparison:
    """All questions about the documents, and what they come to; seconds of each step."""

    questions: list[QuestionRanks]
    summary: dict[str, Summary]
    seconds: dict[str, float]


@dataclass(frozen=True)
class TurnRanks:
    """One question about the chat; ranks of the turn that answers it by raw and contextual turn vectors."""

    question: ChatQuestion
    raw: int
    contextual: int


@dataclass(frozen=True)
class ChatComparison:
    """All questions about the chat; mean reciprocal ranks, and how often the turn is among the first ten."""

    questions: list[TurnRanks]
    reciprocal: dict[str, float]
    first_ten: dict[str, float]
    seconds: dict[str, float]


def compare_documents(
    corpus: Corpus,
    texts: Mapping[str, str],
    questions: Sequence[DocumentQuestion],
    merger: SequenceMerger,
    embedder: MiniLMEmbedder,
) -> DocumentComparison:
    """Rank the right document and passage of each question by every method.

    Args:
        corpus: the documents, embedded.
        texts: their texts by id.
        questions: with their right answers.
        merger: to be calibrated.
        embedder: for the questions.

    Raises:
        InputError: a passage is not in its document.
    """
    with Methods(corpus, merger) as methods:
        began = time.perf_counter()
        rows = []
        for question in questions:
            document, chunk = _right(corpus, texts, question)
            found = methods.search(embedder.embed_query(question.question))
            ranks = {
                name: Ranks(
                    rank(one.documents, document), None if one.chunks is None else rank(one.chunks, chunk)
                )
                for name, one in found.items()
            }
            rows.append(QuestionRanks(question, ranks))
        seconds = methods.seconds | {"search": time.perf_counter() - began}
        vectors = {name: methods.vectors(name) for name in METHODS}
    kilobytes = BYTES_A_NUMBER * corpus.beginnings.shape[1] / 1000
    summary = {
        name: Summary(
            name,
            mean_reciprocal_rank([row.ranks[name].document for row in rows]),
            _mean_of_passages([row.ranks[name].passage for row in rows]),
            count,
            count * kilobytes,
        )
        for name, count in vectors.items()
    }
    return DocumentComparison(rows, summary, seconds)


def compare_turns(
    turns: Sequence[tuple[str, str]],
    vectors: Matrix,
    questions: Sequence[ChatQuestion],
    merger: SequenceMerger,
    embedder: MiniLMEmbedder,
) -> ChatComparison:
    """Rank the turn that answers each question by raw and by contextual turn vectors.

    Args:
        turns: (turn id, ``speaker: text``) in order.
        vectors: (n, d) of the turns.
        questions: with their right turns.
        merger: to be calibrated on the turns.
        embedder: for the questions, and to count tokens.
    """
    places = {turn_id: place for place, (turn_id, _) in enumerate(turns)}
    with QdrantStore(":memory:", merger=merger, contextual=True) as store:
        began = time.perf_counter()
        for (_, text), vector in zip(turns, vectors, strict=True):
            store.append("chat", vector, text=text, mass=max(embedder.count_tokens(text), 1))
        appended = time.perf_counter()
        store.calibrate()
        calibrated = time.perf_counter()
        rows = []
        for question in questions:
            query = embedder.embed_query(question.question)
            ranks = []
            for level in ("chunk", "contextual"):
                hits = store.search(query, len(turns), level)
                right = places[question.turn_id]
                ranks.append(next(place for place, hit in enumerate(hits, 1) if hit.position == right))
            rows.append(TurnRanks(question, *ranks))
        seconds = {
            "append": appended - began,
            "calibrate": calibrated - appended,
            "search": time.perf_counter() - calibrated,
        }
    columns = {"raw": [row.raw for row in rows], "contextual": [row.contextual for row in rows]}
    return ChatComparison(
        rows,
        {name: mean_reciprocal_rank(ranks) for name, ranks in columns.items()},
        {name: sum(place <= 10 for place in ranks) / len(ranks) for name, ranks in columns.items()},
        seconds,
    )


def _right(corpus: Corpus, texts: Mapping[str, str], question: DocumentQuestion) -> tuple[int, int]:
    """Index of the right document, and of the right chunk among all."""
    document = corpus.ids.index(question.document)
    start = texts[question.document].find(question.passage)
    if start < 0:
        raise InputError(f"{question.document} does not hold the passage {question.passage!r}.")
    spans = [(chunk.start, chunk.end) for chunk in corpus.chunks[document]]
    return document, corpus.index(document, passage_chunk(spans, start, start + len(question.passage)))


def _mean_of_passages(ranks: Sequence[int | None]) -> float | None:
    known = [place for place in ranks if place is not None]
    return mean_reciprocal_rank(known) if known else None
