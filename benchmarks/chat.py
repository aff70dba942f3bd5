"""Chat memory: is the turn that answers among the first ten? Turns raw, calibrated, and in context.

Run ``python -m benchmarks.chat --data FOLDER``. The conversations at hand are one sitting each, so a long
chat is ten of them, drawn at random, a day apart. In each sitting one turn that is followed by somebody
else's answer is taken out of the memory and becomes the question, its text as it is; the next turn is the
right one. In TREC CAsT and MTRAG-UN that is a user's turn; in Topical-Chat one of six words or more that ends
with a question mark. Every other turn is a chance to be wrong: in the whole collection, or in the chat alone.

A real long chat differs: its sittings share people and subjects, which a random chain does not, so that the
root of a sitting has more to add here. Embeddings are kept in .cache/. Writes benchmarks/results/chat.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import DEFAULT_DATA, Floats, Ints, embed, read_jsonl, revision, write_result
from benchmarks.conversation import difference, tokens
from merger_plugins import TURN_WEIGHTS, ContextWeights, SequenceMerger, load_merger
from merger_plugins._batching import unit
from merger_plugins.stores.backend import Point
from merger_plugins.stores.sittings import PAUSE, seated
from merger_plugins.stores.surroundings import in_sittings

SETS = {"convqa_trec_cast": 3, "convqa_mtragun": 3, "topicalchat_train": 1}
"""Name -> how often chats are drawn."""

CONVERSATIONS = 1_000
LEAST_TURNS = 6
SITTINGS = 10
LEAST_WORDS = 6
DAY, MINUTE = 86_400.0, 60.0
SEED = 0
BASELINE = "in context, root of the conversation"


@dataclass(frozen=True)
class Turns:
    """All turns of a set: (n, d) as they are stored, (n, d) without their speakers, and (n,) tokens."""

    spoken: Floats
    plain: Floats
    masses: Floats


@dataclass(frozen=True)
class Memory:
    """Long chats and questions about them.

    Attributes:
        vectors: (n, d) raw turn vectors, chat after chat.
        masses: (n,) tokens.
        chat: (n,) the chat of each turn, ascending.
        times: (n,) seconds since the chat began.
        questions: (q, d) raw query vectors.
        asked: (q,) the chat of each question.
        right: (q,) the row that answers it.
    """

    vectors: Floats
    masses: Floats
    chat: Ints
    times: Floats
    questions: Floats
    asked: Ints
    right: Ints

    def chats(self) -> list[NDArray[np.int64]]:
        """The rows of each chat."""
        return np.split(np.arange(len(self.chat)), np.flatnonzero(np.diff(self.chat)) + 1)


def load(name: str, data: Path) -> tuple[list[list[dict[str, Any]]], Turns]:
    """The turns of each conversation, and their vectors end to end."""
    rows = read_jsonl(data / "conv" / f"{name}.jsonl.gz")
    conversations = [row["turns"] for row in rows if len(row["turns"]) >= LEAST_TURNS][:CONVERSATIONS]
    turns = [turn for conversation in conversations for turn in conversation]
    spoken = [f"{turn['speaker']}: {turn['text']}" for turn in turns]
    return conversations, Turns(
        embed(f"{name}-chat-turns", spoken),
        embed(f"{name}-chat-plain", [turn["text"] for turn in turns]),
        tokens(spoken),
    )


def is_question(name: str, turn: dict[str, Any], following: dict[str, Any]) -> bool:
    """Whether a turn asks what the following one answers."""
    if turn["speaker"] == following["speaker"]:
        return False
    if name == "topicalchat_train":
        return turn["text"].strip().endswith("?") and len(turn["text"].split()) >= LEAST_WORDS
    return bool(turn["speaker"] == "user")


def drawn(name: str, conversations: list[list[dict[str, Any]]], turns: Turns, seed: int) -> Memory:
    """Long chats, and a question about each sitting that has one."""
    rng = np.random.default_rng(seed)
    first = np.cumsum([0, *map(len, conversations)])
    order = rng.permutation(len(conversations))
    order = order[: len(order) // SITTINGS * SITTINGS]
    kept: list[int] = []
    chat: list[int] = []
    times: list[float] = []
    questions: list[int] = []
    asked: list[int] = []
    right: list[int] = []
    for position, row in enumerate(order):
        said = conversations[row]
        asking = [i for i in range(len(said) - 1) if is_question(name, said[i], said[i + 1])]
        out = asking[rng.integers(len(asking))] if asking else None
        for i in range(len(said)):
            if i == out:
                questions.append(int(first[row]) + i)
                asked.append(position // SITTINGS)
                right.append(len(kept))
                continue
            kept.append(int(first[row]) + i)
            chat.append(position // SITTINGS)
            times.append(position % SITTINGS * DAY + i * MINUTE)
    return Memory(
        vectors=turns.spoken[kept],
        masses=turns.masses[kept],
        chat=np.array(chat, np.int64),
        times=np.array(times, np.float32),
        questions=turns.plain[questions],
        asked=np.array(asked, np.int64),
        right=np.array(right, np.int64),
    )


def as_stored(merger: SequenceMerger, memory: Memory, *, timed: bool) -> Floats:
    """(n, d) contextual turn vectors as a store makes them."""
    made = []
    for rows in memory.chats():
        points = []
        for position, row in enumerate(rows):
            payload: dict[str, Any] = {"position": position, "mass": float(memory.masses[row])}
            if timed:
                payload["time"] = float(memory.times[row])
            points.append(Point(str(row), payload, unit(memory.vectors[row][None])[0]))
        turns = dict(enumerate(seated(points, None, PAUSE)))
        made += in_sittings(merger, turns, turns, TURN_WEIGHTS)
    return np.stack([point.contextual for point in made if point.contextual is not None])


def contextual(merger: SequenceMerger, memory: Memory, weights: ContextWeights) -> Floats:
    """(n, d) contextual turn vectors from the root of the whole chat."""
    return np.concatenate(
        [
            merger.contextualize(memory.vectors[rows], masses=memory.masses[rows], weights=weights)
            for rows in memory.chats()
        ]
    )


ROWS: dict[str, Callable[[SequenceMerger, Memory], Floats]] = {
    "raw": lambda _, memory: unit(memory.vectors),
    "calibrated": lambda merger, memory: merger._own(merger._leaves(memory.vectors)),
    "in context, neighbours alone": lambda merger, memory: contextual(
        merger, memory, ContextWeights(near=TURN_WEIGHTS.near, root=0)
    ),
    BASELINE: lambda merger, memory: contextual(merger, memory, TURN_WEIGHTS),
    "in context, root of the sitting: what the hook stores": lambda merger, memory: as_stored(
        merger, memory, timed=True
    ),
    "the same without times": lambda merger, memory: as_stored(merger, memory, timed=False),
}


def recalled(memory: Memory, vectors: Floats, *, own: bool, k: int = 10) -> Floats:
    """(q,) 1 where the right turn is among the first k, else 0; ties count against it."""
    scores = unit(memory.questions) @ vectors.T
    if own:
        scores = np.where(memory.chat[None] == memory.asked[:, None], scores, -np.inf)
    right = scores[np.arange(len(scores)), memory.right][:, None]
    found: Floats = ((scores >= right).sum(axis=1) <= k).astype(np.float32)
    return found


def figures_of(name: str, data: Path) -> dict[str, Any]:
    conversations, turns = load(name, data)
    found: dict[str, dict[str, list[Floats]]] = {row: {"all": [], "own": []} for row in ROWS}
    groups = []
    stored = []
    for draw in range(SETS[name]):
        memory = drawn(name, conversations, turns, SEED + draw)
        merger = load_merger().calibrated([memory.vectors[rows] for rows in memory.chats()])
        groups.append(memory.asked + draw * len(conversations))
        stored.append(len(memory.vectors))
        for row, make in ROWS.items():
            vectors = make(merger, memory)
            for scope in ("all", "own"):
                found[row][scope].append(recalled(memory, vectors, own=scope == "own"))
    group = np.concatenate(groups)
    figures: dict[str, Any] = {
        "questions": len(group),
        "draws": SETS[name],
        "turns stored a draw": round(float(np.mean(stored))),
    }
    for scope, title in (("all", "among all chats"), ("own", "in the chat alone")):
        hits = {row: np.concatenate(values[scope]) for row, values in found.items()}
        figures[title] = {
            row: {
                "recall@10": round(float(values.mean()), 4),
                "minus raw": difference(values, hits["raw"], group),
                "minus the root of the conversation": difference(values, hits[BASELINE], group),
            }
            for row, values in hits.items()
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with conv/")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no data at {options.data}; pass --data", file=sys.stderr)
        return 0
    figures = {}
    for name in SETS:
        figures[name] = figures_of(name, options.data)
        print(f"\n{name}: {figures[name]['questions']} questions")
        for title in ("among all chats", "in the chat alone"):
            for row, values in figures[name][title].items():
                print(f"  {title:<18} {row:<55} {values}")
    revisions = {name: revision([options.data / "conv" / f"{name}.jsonl.gz"]) for name in SETS}
    path = write_result("chat", seed=SEED, data=revisions, figures=figures)
    print(f"\nwritten to {path.relative_to(path.parents[2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
