"""Questions that belong to a conversation, and the ways to search with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.conversation import HistoryGate, merge_question, shown_passages
from merger_plugins.embedders import load_embedder
from merger_plugins.finesse.collections import Bools, Ints
from merger_plugins.finesse.embedding import Embeddings, cut, read_jsonl

TRAINING_LENGTH = 254
"""Tokens that turns and passages are cut to: what the bundled embedder was trained on."""

_MOST_TOKENS = 510


@dataclass(frozen=True, eq=False)
class Turns:
    """A history: (n, d) vectors, oldest first, and their tokens."""

    vectors: Matrix
    masses: Vector


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions with their histories.

    Attributes:
        vectors: (q, d) raw.
        masses: (q,) tokens.
        history: of each question.
        relevant: (q, p) True where a passage answers.
        group: (q,) questions of one conversation or article, which are not independent.
        half: (q,) 0 or 1, by a hash of the group's name.
        passages: (p, d) raw.
    """

    vectors: Matrix
    masses: Vector
    history: list[Turns]
    relevant: Bools
    group: Ints
    half: Ints
    passages: Matrix


@dataclass(frozen=True, eq=False)
class FollowUps:
    """A task of the kind ``"follow-ups"``.

    Attributes:
        name: of the task.
        revision: of its data.
        questions: as they were asked.
        rewritten: as a person rewrote them to stand alone; None where the set has no such form.
    """

    name: str
    revision: str
    questions: Questions
    rewritten: Questions | None


Asked = tuple[Matrix, tuple[float, ...]]
"""(k, d) query vectors, and what is taken from the scores of each."""

Merge = Callable[[Vector, float, Turns, Matrix], Asked]
"""(question, its tokens, history, passages shown in it) -> what is searched with."""


def alone(question: Vector, _mass: float, _history: Turns, _shown: Matrix) -> Asked:
    """The question as it is."""
    return question[None], (0.0,)


def mixed(question: Vector, _mass: float, history: Turns, _shown: Matrix) -> Asked:
    """0.7 question + 0.3 mean of the history."""
    if not len(history.vectors):
        return question[None], (0.0,)
    merged: Vector = 0.7 * question + 0.3 * history.vectors.mean(axis=0)
    return merged[None], (0.0,)


def halving(question: Vector, _mass: float, history: Turns, _shown: Matrix) -> Asked:
    """The question, and every turn with half the weight of the one after it."""
    ages = np.arange(len(history.vectors), 0, -1)
    merged: Vector = question + (0.5**ages).astype(np.float32) @ history.vectors
    return merged[None], (0.0,)


def gated(gate: HistoryGate, *, both: bool = False, away: bool = False) -> Merge:
    """`merge_question`.

    Args:
        gate: how much of the history is taken.
        both: search with the question alone, too, and let a passage's better score count.
        away: away from passages that the history has shown.
    """

    def merge(question: Vector, mass: float, history: Turns, shown: Matrix) -> Asked:
        query = merge_question(
            question,
            history.vectors,
            question_mass=mass,
            masses=history.masses if len(history.masses) else None,
            shown=shown if away else None,
            gate=gate,
        )
        return (query.queries, query.doubts) if both else (query.vector[None], (0.0,))

    return merge


def shown_before(questions: Questions) -> list[Ints]:
    """The passages that each history has shown, looked for as in a store: the nearest one to each turn."""
    found = []
    for history in questions.history:
        if not len(history.vectors):
            found.append(np.zeros(0, np.int64))
            continue
        nearest = np.unique((history.vectors @ questions.passages.T).argmax(axis=1))
        found.append(nearest[shown_passages(history.vectors, questions.passages[nearest])])
    return found


def passage_scores(questions: Questions, shown: Sequence[Ints], merge: Merge) -> Matrix:
    """(q, p): each passage's better cosine with what is searched with, less what the history is doubted."""
    cases = zip(questions.vectors, questions.masses, questions.history, shown, strict=True)
    found = [merge(q, float(mass), history, questions.passages[s]) for q, mass, history, s in cases]
    starts = np.cumsum([0, *(len(queries) for queries, _ in found[:-1])])
    cosines = np.concatenate([queries for queries, _ in found]) @ questions.passages.T
    cosines -= np.concatenate([doubts for _, doubts in found]).astype(np.float32)[:, None]
    scores: Matrix = np.maximum.reduceat(cosines, starts, axis=0)
    return scores


def tokens(texts: Sequence[str]) -> Vector:
    """(n,) tokens of texts, from 1 to what the bundled embedder reads."""
    embedder = load_embedder()
    counted = [max(embedder.count_tokens(text), 1) for text in texts]
    return np.minimum(np.array(counted, np.float32), _MOST_TOKENS)


def with_evidence(
    conversations: Sequence[dict[str, Any]], passages: Sequence[dict[str, Any]]
) -> tuple[list[tuple[int, dict[str, Any]]], Bools]:
    """The questions that have evidence among the passages.

    Returns:
        Each with the number of its conversation, and (q, p) True where a passage answers.
    """
    asked = [
        (number, question)
        for number, row in enumerate(conversations)
        for question in row["questions"]
        if question["evidence"]
    ]
    index = {row["id"]: i for i, row in enumerate(passages)}
    relevant = np.zeros((len(asked), len(passages)), np.bool_)
    for row, (_, question) in zip(relevant, asked, strict=True):
        row[[index[passage] for passage in question["evidence"]]] = True
    return asked, relevant


def load_follow_ups(
    name: str, revision: str, passages: Path, conversations: Path, embed: Embeddings
) -> FollowUps:
    """Read and embed a set.

    Args:
        name: of the task.
        revision: of the files.
        passages: the file of the passages.
        conversations: the file of the conversations.
        embed: the base embedder.

    Raises:
        DocumentError: a file cannot be read.
    """
    kept = conversations.name.partition(".")[0]
    loose, rows = read_jsonl(passages), read_jsonl(conversations)
    asked, relevant = with_evidence(rows, loose)
    turns = [
        {turn["turn_id"]: cut(turn["text"], TRAINING_LENGTH) for turn in rows[number]["turns"]}
        for number, _ in asked
    ]
    texts = [
        [known[turn] for turn in question["history"]]
        for known, (_, question) in zip(turns, asked, strict=True)
    ]
    flat = [text for history in texts for text in history]
    ends = np.cumsum([len(history) for history in texts])[:-1]
    vectors, masses = embed(f"{kept}-turns", flat), tokens(flat)
    names = [rows[number]["id"] for number, _ in asked]
    spoken = [question["question"] for _, question in asked]
    questions = Questions(
        vectors=embed.queries(f"{kept}-asked", spoken),
        masses=tokens(spoken),
        history=[Turns(*part) for part in zip(np.split(vectors, ends), np.split(masses, ends), strict=True)],
        relevant=relevant,
        group=np.unique(names, return_inverse=True)[1].astype(np.int64),
        half=np.array([hashed_half(conversation) for conversation in names], np.int64),
        passages=embed(f"{kept}-passages-254", [cut(row["text"], TRAINING_LENGTH) for row in loose]),
    )
    rewrites = [question["rewrite"] for _, question in asked]
    rewritten = None
    if all(rewrites):
        rewritten = replace(
            questions, vectors=embed.queries(f"{kept}-rewrites", rewrites), masses=tokens(rewrites)
        )
    return FollowUps(name, revision, questions, rewritten)


def hashed_half(name: str) -> int:
    """0 or 1."""
    return hashlib.sha256(name.encode()).digest()[0] & 1
