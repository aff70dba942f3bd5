"""Articles embedded into shards: safetensors files, each written whole or not at all, and never again.

A shard is named after a hash of its articles and of every setting that its contents depend on. So an
interrupted run goes on with the first shard that is missing, and runs that agree share a folder.

Arrays of a shard, vectors as float16 of unit length::

    chunks (N, d), tokens (N,), articles (A + 1,)   chunk vectors in reading order; where each article begins
    windows (W, d), window_start, window_count (W,) the teacher's vectors of neighbouring chunks
    pieces (V, d), leaves (L,)                      vectors of single tokens; rows of them, tree after tree
    nodes (M, d), node_start, node_stop, node_parent, node_article (M,)
                                                    inner nodes over leaves: parents before children, rows
                                                    counted over the shard, -1 for a root
    queries (Q, d), query_article, query_kind, query_chunk (Q,)
                                                    with the row of the chunk each was made from, or -1
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import InputError, TrainingError
from merger_plugins.training.data.articles import Article
from merger_plugins.training.data.bases import Base
from merger_plugins.training.data.pieces import random_tree, single_tokens

FORMAT = 1
"""Of a shard; part of its name: raise it when contents change."""

TITLE, LEAD, SPAN = 0, 1, 2
"""Kinds of queries."""

LONGEST_WINDOW = 10
"""Chunks of a window at the most."""

_MOST_PIECES = 100_000  # vectors of pieces that are kept between shards
_SPAN_WORDS = (5, 12)


@dataclass(frozen=True)
class ShardSettings:
    """What is made of an article.

    Attributes:
        chunk_tokens: tokens that sentences are packed up to.
        max_chunks: an article is cut after so many.
        partitions: how many times an article is divided into windows, each time differently; every one embeds
            the whole article again.
        tree_tokens: single-token pieces under one tree; 0 for no trees.
        trees: trees of an article, at most.
        spans: queries made from the inside of an article.
        articles_per_shard: articles of one file.
    """

    chunk_tokens: int = 50
    max_chunks: int = 256
    partitions: int = 1
    tree_tokens: int = 128
    trees: int = 1
    spans: int = 2
    articles_per_shard: int = 32

    def __post_init__(self) -> None:
        least = {"chunk_tokens": 4, "max_chunks": 2, "partitions": 1, "articles_per_shard": 1}
        for name, value in asdict(self).items():
            if type(value) is not int or value < least.get(name, 0):
                raise InputError(
                    f"{name} is {value!r}; it takes a whole number from {least.get(name, 0)} on."
                )


@dataclass
class Texts:
    """What a shard embeds, before it is embedded."""

    articles: list[Article] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    bounds: list[int] = field(default_factory=lambda: [0])
    windows: list[str] = field(default_factory=list)
    window_spans: list[tuple[int, int]] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    node_spans: list[tuple[int, int, int, int]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    query_origins: list[tuple[int, int, int]] = field(default_factory=list)
    too_short: int = 0

    @property
    def count(self) -> int:
        """Texts to embed, were no single-token piece known yet."""
        parts = (self.chunks, self.windows, set(self.leaves), self.nodes, self.queries)
        return sum(map(len, parts))


def texts_of(articles: Sequence[Article], base: Base, settings: ShardSettings, seed: int) -> Texts:
    """Chunks, windows, trees and queries of articles; those of fewer than two chunks give nothing."""
    texts = Texts()
    size = max(min(settings.chunk_tokens, base.room // 2), 1)
    chunker = SentenceChunker(size, base.count_tokens)
    for article in articles:
        rng = np.random.default_rng([seed, int(article.key[:12], 16)])
        chunks = chunker.split(article.text)[: settings.max_chunks]
        # A sentence may be half as long again as a chunk, so that two of them leave the context.
        chunks = [chunk for chunk in chunks if chunk.tokens <= base.room]
        if len(chunks) < 2:
            texts.too_short += 1
            continue
        first, number = len(texts.chunks), len(texts.articles)
        texts.articles.append(article)
        texts.chunks += [chunk.text for chunk in chunks]
        texts.tokens += [max(chunk.tokens, 1) for chunk in chunks]
        texts.bounds.append(len(texts.chunks))
        spans = [(chunk.start, chunk.end) for chunk in chunks]
        for _ in range(settings.partitions):
            _windows(texts, article.text, spans, first, base, rng)
        for _ in range(settings.trees if settings.tree_tokens else 0):
            _tree(texts, article.text, number, spans, base, settings.tree_tokens, rng)
        _queries(texts, article, number, first, settings.spans, rng)
    return texts


def _windows(
    texts: Texts,
    text: str,
    spans: list[tuple[int, int]],
    first: int,
    base: Base,
    rng: np.random.Generator,
) -> None:
    """Divide an article into windows of 2 to 10 chunks whose text lies within the context."""
    place = 0
    while place < len(spans) - 1:
        count = min(int(rng.integers(2, LONGEST_WINDOW + 1)), len(spans) - place)
        while (
            count > 1 and base.count_tokens(text[spans[place][0] : spans[place + count - 1][1]]) > base.room
        ):
            count -= 1
        if count > 1:
            texts.windows.append(text[spans[place][0] : spans[place + count - 1][1]])
            texts.window_spans.append((first + place, count))
        place += count


def _tree(
    texts: Texts,
    text: str,
    article: int,
    spans: list[tuple[int, int]],
    base: Base,
    most: int,
    rng: np.random.Generator,
) -> None:
    """A tree over the single-token pieces from the beginning of a random chunk on."""
    start = spans[int(rng.integers(0, max(len(spans) - 2, 1)))][0]
    stop = next((end for begin, end in spans if end - start > 8 * most), spans[-1][1])
    pieces = single_tokens(text[start:stop], base.count_tokens)[:most]
    while len(pieces) > 1 and base.count_tokens(text[start : start + pieces[-1][1]]) > base.room:
        pieces = pieces[: len(pieces) * 3 // 4]
    if len(pieces) < 2:
        return
    first_leaf, first_node = len(texts.leaves), len(texts.nodes)
    texts.leaves += [text[start + begin : start + end] for begin, end in pieces]
    tree = random_tree(len(pieces), rng)
    inner = np.flatnonzero(tree.stop - tree.start > 1)
    rows = {-1: -1, **{int(node): first_node + row for row, node in enumerate(inner)}}
    for node in inner.tolist():
        begin, end = int(tree.start[node]), int(tree.stop[node])
        texts.nodes.append(text[start + pieces[begin][0] : start + pieces[end - 1][1]])
        texts.node_spans.append((first_leaf + begin, first_leaf + end, rows[int(tree.parent[node])], article))


def _queries(
    texts: Texts, article: Article, number: int, first: int, spans: int, rng: np.random.Generator
) -> None:
    """The title; the first sentence; a few neighbouring words from random chunks."""
    stop = len(texts.chunks)
    if article.title.strip():
        texts.queries.append(article.title.strip())
        texts.query_origins.append((number, TITLE, -1))
    lead = SentenceChunker(8, lambda text: len(text.split())).split(texts.chunks[first])[0].text
    texts.queries.append(lead)
    texts.query_origins.append((number, LEAD, first))
    for row in rng.choice(np.arange(first, stop), min(spans, stop - first), replace=False).tolist():
        texts.queries.append(_span(texts.chunks[row], rng))
        texts.query_origins.append((number, SPAN, row))


def _span(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    length = int(rng.integers(*_SPAN_WORDS, endpoint=True))
    if len(words) > 2:
        start = int(rng.integers(0, max(len(words) - length, 0) + 1))
        return " ".join(words[start : start + length])
    start = int(rng.integers(0, max(len(text) - 3 * length, 0) + 1))  # a script without spaces
    return text[start : start + 3 * length]


class ShardWriter:
    """Embeds articles into the shards of a folder.

    Args:
        folder: where the shards are; made if it is not there.
        base: what embeds.
        settings: what is made of an article.
        seed: of windows, trees and queries.
    """

    def __init__(self, folder: Path, base: Base, settings: ShardSettings, seed: int) -> None:
        self.folder, self.base, self.settings, self.seed = folder, base, settings, seed
        self._pieces: dict[str, NDArray[np.float16]] = {}

    def path(self, articles: Sequence[Article]) -> Path:
        """The file of these articles, which may not be there yet."""
        stated = {
            "format": FORMAT,
            "embedder": self.base.name,
            "dimension": self.base.dimension,
            "room": self.base.room,
            "seed": self.seed,
            **asdict(self.settings),
            "articles": [(article.key, article.title, article.language) for article in articles],
        }
        digest = hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=8).hexdigest()
        return self.folder / f"{digest}.safetensors"

    def groups(self, articles: Sequence[Article]) -> list[Sequence[Article]]:
        """The articles of each shard."""
        size = self.settings.articles_per_shard
        return [articles[start : start + size] for start in range(0, len(articles), size)]

    def write(
        self, articles: Sequence[Article], progress: Callable[[int], None] = lambda _: None
    ) -> list[Path]:
        """Write every shard that is missing.

        Args:
            articles: all of them, in their order.
            progress: told the number of articles after each shard.

        Returns:
            The files, in order.

        Raises:
            TrainingError: no space is left.
            InputError: what the embedder gave cannot be used.
        """
        paths = []
        for group in self.groups(articles):
            path = self.path(group)
            if path.exists():
                self._remember(path)
            else:
                self._save(path, texts_of(group, self.base, self.settings, self.seed))
            paths.append(path)
            progress(len(group))
        return paths

    def _save(self, path: Path, texts: Texts) -> None:
        known: dict[str, Any] = {}
        arrays: dict[str, NDArray[Any]] = {
            "chunks": self._embedded(texts.chunks),
            "tokens": np.array(texts.tokens, np.float32),
            "articles": np.array(texts.bounds, np.int64),
            "window_start": _column(texts.window_spans, 0),
            "window_count": _column(texts.window_spans, 1),
            "windows": self._embedded(texts.windows),
            "pieces": self._piece_vectors(texts.leaves, known),
            "leaves": np.array([known[text] for text in texts.leaves], np.int64),
            "node_start": _column(texts.node_spans, 0),
            "node_stop": _column(texts.node_spans, 1),
            "node_parent": _column(texts.node_spans, 2),
            "node_article": _column(texts.node_spans, 3),
            "nodes": self._embedded(texts.nodes),
            "query_article": _column(texts.query_origins, 0),
            "query_kind": _column(texts.query_origins, 1),
            "query_chunk": _column(texts.query_origins, 2),
            "queries": self.base.embed_queries(texts.queries).astype(np.float16),
        }
        about = {
            "ids": json.dumps([article.id for article in texts.articles]),
            "languages": json.dumps([article.language for article in texts.articles]),
            "pieces": json.dumps(list(known)),
            "too_short": str(texts.too_short),
        }
        self._place(path, save(arrays, about))

    def _place(self, path: Path, data: bytes) -> None:
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise no_space(error, self.folder, len(data)) from error

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float16]:
        return self.base.embed(texts).astype(np.float16)

    def _piece_vectors(self, leaves: Sequence[str], known: dict[str, Any]) -> NDArray[np.float16]:
        distinct = list(dict.fromkeys(leaves))
        known.update({text: row for row, text in enumerate(distinct)})
        new = [text for text in distinct if text not in self._pieces]
        fresh = dict(zip(new, self._embedded(new), strict=True))
        vectors = [self._pieces[text] if text in self._pieces else fresh[text] for text in distinct]
        self._keep(fresh)
        return np.stack(vectors) if vectors else np.empty((0, self.base.dimension), np.float16)

    def _keep(self, fresh: dict[str, NDArray[np.float16]]) -> None:
        if len(self._pieces) < _MOST_PIECES:
            self._pieces.update(fresh)

    def _remember(self, path: Path) -> None:
        arrays, about = read_shard(path, names=("pieces",))
        self._keep(dict(zip(json.loads(about["pieces"]), arrays["pieces"], strict=True)))


def read_shard(
    path: Path, names: Sequence[str] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the description of a shard.

    Args:
        path: its file.
        names: the arrays to read; None for all.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in names or file.keys()}
            return arrays, file.metadata()
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"The shard {path} cannot be read ({error}). Delete it: the next run makes it again."
        ) from error


def no_space(error: OSError, folder: Path, size: int | None = None) -> Exception:
    """An error of ours where `error` says that a file system is full, else `error` itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    wanted = f" for {size / 1e6:,.1f} MB" if size else ""
    return TrainingError(
        f"No space is left{wanted} in {folder} ({error.strerror}). Nothing that was written before is lost: "
        "make room and give the same command again, which goes on from there."
    )


def _column(rows: Sequence[tuple[int, ...]], column: int) -> NDArray[np.int64]:
    return np.array([row[column] for row in rows], np.int64)
