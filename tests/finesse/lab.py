"""Small collections with known answers, and an embedder whose vectors can be computed by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.finesse.collections import Collection
from merger_plugins.finesse.embedding import Embeddings, revision
from merger_plugins.finesse.tasks import Source, Task

WORDS = re.findall(
    r"\w+",
    "moss fern pine oak ash elm birch yew larch cedar granite basalt slate chalk flint marble gneiss shale "
    "trout perch pike carp bream roach tench eel herring cod finch wren robin heron gull tern owl crow rook "
    "kite swift lark bell drum lute harp horn flute viol pipe fiddle organ",
)


class WordEmbedder:
    """A text's vector counts its words, the last ones not read; not normalised."""

    def __init__(self, most_words: int = 10_000) -> None:
        self.most_words = most_words
        self.calls = 0

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        vector = np.full(len(WORDS) + 1, 0.1, np.float32)
        for word in text.lower().replace(".", " ").replace("?", " ").split()[: self.most_words]:
            vector[WORDS.index(word) if word in WORDS else -1] += 1
        return vector


class SignedEmbedder:
    """A text's vector is the sum of its words' random vectors; the last words are not read."""

    fingerprint = ""

    def __init__(self, most_words: int = 10_000, *, scale: float = 1.0, queries: float = 1.0) -> None:
        self.most_words, self.scale, self.queries = most_words, scale, queries

    def embed_documents(self, texts: Sequence[str]) -> Any:
        return np.stack([self._of(text) for text in texts])

    def embed_query(self, text: str) -> Any:
        return self._of(text) * self.queries

    def _of(self, text: str) -> Any:
        words = [f"{place % 60} {word}" for place, word in enumerate(text.split())]
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") for word in words]
        drawn = [np.random.default_rng(seed).standard_normal(24) for seed in seeds[: self.most_words]]
        return np.sum(drawn, axis=0) * self.scale


def collection(
    documents: int = 12, chunks: int = 14, *, seed: int = 0, dimension: int = 24, spread: float = 0.5
) -> Collection:
    """Documents about a direction each, with as many questions; passages are pairs of chunks."""
    rng = np.random.default_rng(seed)
    subjects = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0][:documents]
    document = np.repeat(np.arange(documents), chunks)
    noise = rng.standard_normal((documents * chunks, dimension)) * spread / np.sqrt(dimension)
    passage = np.arange(documents * chunks) // 2
    gold = rng.integers(len(passage), size=2 * documents)
    vectors = (subjects[document] + noise).astype(np.float32)
    queries = vectors[gold] + rng.standard_normal((len(gold), dimension)).astype(np.float32) * 0.02
    return Collection(
        name="synthetic",
        revision="0",
        chunks=vectors,
        document=document,
        masses=rng.integers(5, 60, len(document)).astype(np.float32),
        queries=queries / np.linalg.norm(queries, axis=1, keepdims=True),
        relevant=document[gold][:, None] == np.arange(documents),
        group=document[gold],
        passage=passage,
        relevant_passage=passage[gold],
        passages=int(passage[-1]) + 1,
    )


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def sentence(rng: np.random.Generator, words: Sequence[str], count: int = 12) -> str:
    return " ".join(rng.choice(list(words), count)).capitalize() + "."


def retrieval_data(data: Path, *, seed: int = 0, documents: int = 6) -> Task:
    """A set on disk: six documents of four paragraphs, each with words of its own, and its task."""
    rng = np.random.default_rng(seed)
    docs, queries, qrels = [], [], []
    for index in range(documents):
        own = WORDS[8 * index : 8 * index + 8]
        paragraphs = [
            " ".join(sentence(rng, own[2 * part : 2 * part + 4 if part < 3 else None]) for _ in range(4))
            for part in range(4)
        ]
        docs.append({"id": f"d{index}", "lang": "en", "title": "", "text": "\n\n".join(paragraphs)})
        asked = int(rng.integers(4))
        queries.append({"id": f"q{index}", "text": paragraphs[asked].partition(".")[0] + "?"})
        qrels.append({"query_id": f"q{index}", "doc_id": f"d{index}", "passage": asked})
    parts = {"docs": docs, "queries": queries, "qrels": qrels}
    files = [written(data / "eval" / "woods" / f"{name}.jsonl.gz", rows) for name, rows in parts.items()]
    names = tuple(str(file.relative_to(data)) for file in files)
    return Task("woods", "retrieval", names, revision(files), "all", "ndcg@10", "en", "ours", "made here")


def conversation_data(data: Path) -> tuple[Task, Task]:
    """A set on disk: questions that name their subject only in the turn before, and its two tasks."""
    subjects = [word for word in WORDS if word not in ("flute", "viol")]
    passages = [{"id": word, "text": f"{word} {word} {word}. flute viol."} for word in subjects]
    rows = []
    for index, word in enumerate(subjects[:12]):
        turns = [
            {"turn_id": "t0", "session": 0, "speaker": "user", "text": f"{word} {word}"},
            {"turn_id": "t1", "session": 0, "speaker": "user", "text": "And the viol?"},
        ]
        evidence = [word] if index else [word, subjects[-1]]
        question = {"question": "viol?", "turn_id": "t1", "history": ["t0"], "evidence": evidence}
        rows.append(
            {"id": f"c{index}", "turns": turns, "questions": [question | {"rewrite": f"{word} viol?"}]}
        )
    files = (
        written(data / "conv" / "talk_passages.jsonl.gz", passages),
        written(data / "conv" / "talk.jsonl.gz", rows),
    )
    names = tuple(str(file.relative_to(data)) for file in files)
    rest = ("all", "ndcg@10", "en", "ours", "made here")
    return (
        Task("talk", "loose passages", names, revision(files), *rest),
        Task("talk-follow-ups", "follow-ups", names, revision(files), *rest),
    )


def source(data: Path, embedder: Any = None) -> Source:
    return Source(data, Embeddings(embedder or WordEmbedder()))
