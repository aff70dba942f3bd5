"""Follow-up questions: does searching with question and history find more than the question alone?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from merger_plugins._types import Matrix, Vector
from merger_plugins.conversation import HistoryGate, load_gate
from merger_plugins.finesse.follow_ups import (
    Asked,
    FollowUps,
    Merge,
    Turns,
    alone,
    gated,
    halving,
    mixed,
    passage_scores,
    shown_before,
)
from merger_plugins.finesse.metrics import DEPTH, ranking_metrics
from merger_plugins.finesse.records import Record
from merger_plugins.finesse.rivals import Rival
from merger_plugins.mergers.base import SequenceMerger

AXIS = "follow-ups"
METRICS = (f"mrr@{DEPTH}", "ndcg@10")
QUESTION = "question alone"
REWRITE = "human rewrite alone"

HISTORY_SHARE = 0.3
"""Of the merged history, beside 0.7 of the question."""

WAYS: Mapping[str, Callable[[], Merge]] = {
    QUESTION: lambda: alone,
    "0.7 question + 0.3 mean of the history": lambda: mixed,
    "weights halving back in time": lambda: halving,
    "cosine gate": lambda: gated(HistoryGate()),
    "trained gate": lambda: gated(load_gate()),
    "trained gate, both searched": lambda: gated(load_gate(), both=True),
}
"""Ways without a merger; the trained gate reads vectors of the bundled embedder alone."""


def follow_ups(
    rivals: Sequence[Rival],
    task: FollowUps,
    *,
    ways: Sequence[str] = tuple(WAYS),
    seed: int = 0,
) -> list[Record]:
    """Rank a set's passages, stored raw, for its follow-up questions.

    Args:
        rivals: those that do not merge are left out.
        task: the questions.
        ways: of `WAYS`.
        seed: of the intervals.

    Returns:
        Records of the ways; of each merger, calibrated on the passages, with the history merged (``NAME:
        history``: 0.7 question + 0.3 merged history) and with history and question merged as one sequence
        (``NAME: all turns``); and of the human rewrite, where there is one. Of several right passages the
        best one counts for the reciprocal rank.

    Raises:
        InputError: a merger of another dimension.
    """
    questions = task.questions
    shown = shown_before(questions)
    found: dict[str, Matrix] = {way: passage_scores(questions, shown, WAYS[way]()) for way in ways}
    for rival in rivals:
        merger = rival.merger([questions.passages[row : row + 1] for row in range(len(questions.passages))])
        if merger is not None:
            found[f"{rival.name}: history"] = passage_scores(questions, shown, with_history(merger))
            found[f"{rival.name}: all turns"] = passage_scores(questions, shown, all_turns(merger))
    if task.rewritten is not None:
        found[REWRITE] = passage_scores(task.rewritten, shown, alone)
    return [
        Record.of(AXIS, task.name, name, metric, each, questions.group, seed=seed)
        for name, scores in found.items()
        for metric, each in ranking_metrics(scores, questions.relevant, METRICS).items()
    ]


def with_history(merger: SequenceMerger) -> Merge:
    """The question with a part of the merged history."""

    def merge(question: Vector, mass: float, history: Turns, shown: Matrix) -> Asked:
        if not len(history.vectors):
            return alone(question, mass, history, shown)
        merged = merger.merge(history.vectors, masses=history.masses)
        return ((1 - HISTORY_SHARE) * question + HISTORY_SHARE * merged)[None].astype(np.float32), (0.0,)

    return merge


def all_turns(merger: SequenceMerger) -> Merge:
    """History and question, the latest last, as one sequence; a question without history as it is."""

    def merge(question: Vector, mass: float, history: Turns, shown: Matrix) -> Asked:
        if not len(history.vectors):
            return alone(question, mass, history, shown)
        vectors = np.concatenate([history.vectors, question[None]])
        masses = np.append(history.masses, np.float32(mass))
        return merger.merge(vectors, masses=masses)[None], (0.0,)

    return merge
