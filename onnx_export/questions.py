"""Questions that need their conversation and questions that stand alone, made from frames.

The frames in questions.json were written for this project. {X} and {Y} are topics, {N} is a noun and {V} an
action that almost any topic has.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log
from pathlib import Path

_PARTS = json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))
FRAMES: list[str] = _PARTS["frames"]
ELLIPSES: list[str] = _PARTS["ellipses"]
NOUNS: list[str] = _PARTS["nouns"]
NOUN_FRAMES: list[str] = _PARTS["noun_frames"]
ACTIONS: list[str] = _PARTS["actions"]
ACTION_FRAMES: list[str] = _PARTS["action_frames"]
NOUN_OF_TOPIC: list[str] = _PARTS["noun_of_topic"]
TWO_TOPICS: list[str] = _PARTS["two_topics"]

_FUNCTION_WORDS = frozenset(_PARTS["function_words"].split())
_SUBJECTS = ("it", "it", "this", "that", "they", "those")
_OBJECTS = ("it", "it", "this", "that", "them", "those")
_AGREEMENT = (("is", "are"), ("was", "were"), ("does", "do"), ("has", "have"))
_IS_SUBJECT = re.compile(r"\b(do|does|did|is|was|can|has) \{X\}|\{X\} (is|was|does|has|can)\b", re.IGNORECASE)


def dependent(rng: random.Random, per_kind: int) -> Iterator[tuple[str, str]]:
    """(kind, question) that need their conversation: pronouns, ellipses, nouns and actions of no topic."""
    for _ in range(per_kind):
        yield "a pronoun", _with_pronoun(rng, rng.choice(FRAMES))
        yield "a noun", rng.choice(NOUN_FRAMES).replace("{N}", rng.choice(NOUNS))
        yield "an action", rng.choice(ACTION_FRAMES).replace("{V}", rng.choice(ACTIONS))
    for question in ELLIPSES:
        yield "an ellipsis", question


def independent(
    rng: random.Random, per_kind: int, titles: Sequence[str], phrases: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(kind, question) that say what they are about, by a title or by a phrase."""
    for _ in range(per_kind):
        yield "a title", rng.choice(FRAMES).replace("{X}", rng.choice(titles))
        phrase = rng.choice(("", "", "the ")) + rng.choice(phrases)
        yield "a phrase", rng.choice(FRAMES).replace("{X}", phrase)
        frame = rng.choice(NOUN_OF_TOPIC).replace("{N}", rng.choice(NOUNS))
        yield "a title's noun", frame.replace("{X}", rng.choice(titles))
        yield "a phrase's noun", frame.replace("{X}", rng.choice(phrases))
        frame = rng.choice(TWO_TOPICS)
        yield "two phrases", frame.replace("{X}", rng.choice(phrases)).replace("{Y}", rng.choice(phrases))


def topical_phrases(texts: Sequence[str], *, per_text: int = 4, least: int = 3) -> list[str]:
    """Pairs of lower-case words that a text repeats and few others have: "bone marrow", "trade union"."""
    counts = [_pairs(text) for text in texts]
    spread = Counter(pair for counted in counts for pair in counted)
    phrases: list[str] = []
    for counted in counts:
        ranked = sorted(counted, key=lambda pair: (-counted[pair] * log(len(texts) / spread[pair]), pair))
        phrases += [pair for pair in ranked[:per_text] if counted[pair] >= least]
    return phrases


def _pairs(text: str) -> Counter[str]:
    words = re.findall(r"[A-Za-z]+(?:-[a-z]+)*|[^\sA-Za-z]+", text[:12_000])
    return Counter(
        f"{first} {second}"
        for first, second in pairwise(words)
        if _is_topical(first) and _is_topical(second) and not second.endswith(("ed", "ing"))
    )


def _is_topical(word: str) -> bool:
    if len(word) < 4 or not word.islower() or not word.isascii():
        return False
    return word not in _FUNCTION_WORDS and not word.endswith("ly")


def _with_pronoun(rng: random.Random, frame: str) -> str:
    """The frame with a pronoun for its topic, and its verb made to agree."""
    subject = bool(_IS_SUBJECT.search(frame))
    pronoun = rng.choice(_SUBJECTS if subject else _OBJECTS)
    if subject and pronoun in ("they", "those"):
        for one, many in _AGREEMENT:
            frame = re.sub(rf"\b{one} \{{X\}}", f"{many} {{X}}", frame)
            frame = re.sub(rf"\b{one.capitalize()} \{{X\}}", f"{many.capitalize()} {{X}}", frame)
            frame = re.sub(rf"\{{X\}} {one}\b", f"{{X}} {many}", frame)
    return frame.replace("{X}", pronoun)
