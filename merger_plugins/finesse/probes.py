"""What FINESSE merges: beginnings of articles that have nothing to do with one another.

One article gives one probe, its first tokens, as in the public package. Which articles are taken depends on
their texts and the seed, never on an embedder's vectors, so that mergers of different embedders can be
measured on the same text. Whether an embedder finds them independent, too, is measured: the mean cosine
between probes.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from merger_plugins._batching import unit
from merger_plugins._types import Matrix
from merger_plugins.chunking import CHUNK_TOKENS
from merger_plugins.embedders import Embedder, load_embedder
from merger_plugins.errors import DocumentError, InputError
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.rows import checked_rows

INDEPENDENT: Final = 0.1
"""Mean cosine between probes up to which they count as independent."""

_CHARACTERS_A_TOKEN = 24  # of an article's beginning that is kept; few languages have more than 8
_OTHERS = re.compile(r"[\W_]+")
_WORD_AT_END = re.compile(r"\s+\S{1,24}$")


@dataclass(frozen=True)
class Article:
    """One text.

    Attributes:
        id: what messages call it.
        language: any name of its language; empty where it is not known.
        text: all of it.
    """

    id: str
    language: str
    text: str


@dataclass(frozen=True)
class Probes:
    """Beginnings of independent articles, in the order drawn.

    Attributes:
        texts: n of them, each of at most `tokens` tokens.
        ids: of their articles.
        languages: of their articles.
        tokens: what each was cut to.
        revision: 16 hexadecimal digits over the texts in their order.
        read: articles that were looked at for them: those below, doubles and short ones.
        doubles: articles left out as they repeat another one, or begin like it.
        short: articles left out as they have fewer tokens.
    """

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    languages: tuple[str, ...]
    tokens: int
    revision: str
    read: int
    doubles: int
    short: int

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class EmbeddedProbes:
    """Probes with their chunk vectors.

    Attributes:
        probes: the texts.
        embedder: what embedded them.
        embed: the same, whose vectors are kept between runs where there is a folder for them.
        name: of the embedder.
        fingerprint: of the embedder; None where it has none.
        context: tokens that the embedder reads of one text; None where it does not tell.
        tokens: of that context, that a probe takes at the most.
        vectors: (n, d) float32, unit rows.
        mean_cosine: over all pairs of different probes.
    """

    probes: Probes
    embedder: Embedder
    embed: Embeddings
    name: str
    fingerprint: str | None
    context: int | None
    tokens: int
    vectors: Matrix
    mean_cosine: float

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def independent(self) -> bool:
        """Whether the mean cosine is at most `INDEPENDENT`."""
        return self.mean_cosine <= INDEPENDENT


def read_articles(sources: Sequence[str | os.PathLike[str]]) -> Iterator[Article]:
    """The texts of JSON-lines files, or of folders of them: objects with ``text``, ``id`` and ``lang``.

    Args:
        sources: paths of ``.jsonl`` or ``.jsonl.gz`` files or of folders that hold such files.

    Raises:
        DocumentError: a source is missing, cannot be read, or a line is no object with a ``text``.
    """
    for source in map(Path, sources):
        files = sorted(source.glob("*.jsonl*")) if source.is_dir() else [source]
        if not files:
            raise DocumentError(f"{source}: this folder holds no .jsonl or .jsonl.gz file. Check the path.")
        for file in files:
            for row in checked_rows(file):
                name = str(row.fields.get("id", f"{file.name}:{row.line}"))
                yield Article(name, str(row.fields.get("lang", "")), row.text("text", empty=True))


def choose_probes(
    articles: Iterable[Article],
    count: int,
    *,
    tokens: int = CHUNK_TOKENS,
    count_tokens: Callable[[str], int] | None = None,
    seed: int = 0,
    languages: Collection[str] | str | None = None,
) -> Probes:
    """Draw articles, shuffled over all languages, and cut each to its first tokens.

    Articles with the same letters and digits, or that begin alike, are one article. Those of fewer tokens
    than asked for are left out. What is drawn does not depend on the order of `articles`.

    Args:
        articles: all there are; read once, of each only its beginning is kept.
        count: probes to draw.
        tokens: that each probe is cut to; words stay whole where spaces part them.
        count_tokens: tokens of a text without special ones; the bundled embedder's for None.
        seed: of the draw.
        languages: the only one, or ones, to draw from; None for all.

    Raises:
        InputError: a setting is out of range, or there are too few independent articles.
    """
    if count < 1 or tokens < 1:
        raise InputError(f"count is {count} and tokens {tokens}; both are at least 1.")
    counted = count_tokens or load_embedder().count_tokens
    wanted = {languages} if isinstance(languages, str) else languages
    lots = sorted(_lots(articles, tokens, seed, wanted))
    drawn: list[tuple[str, str, str]] = []
    seen: set[bytes] = set()
    doubles = short = read = 0
    for _, whole, name, language, beginning in lots:
        if len(drawn) == count:
            break
        read += 1
        if counted(beginning) < tokens:
            short += 1
            continue
        text = first_tokens(beginning, tokens, counted)
        keys = {whole, _digest(text)}
        if keys & seen:
            doubles += 1
            continue
        seen |= keys
        drawn.append((text, name, language))
    if len(drawn) < count:
        found = Counter(language for *_, language in drawn)
        raise InputError(
            f"{count} independent articles are needed, and there are {len(drawn)} "
            f"({', '.join(f'{n} {name}' for name, n in sorted(found.items())) or 'none'}) among {read} read: "
            f"{doubles} repeat another one, {short} have fewer than {tokens} tokens. Name more texts, or ask "
            "for fewer samples, shorter sequences or shorter probes."
        )
    texts, ids, drawn_languages = zip(*drawn, strict=True)
    return Probes(texts, ids, drawn_languages, tokens, _revision(texts), read, doubles, short)


def embed_probes(
    probes: Probes,
    embedder: Any = None,
    *,
    folder: Path | None = None,
    name: str | None = None,
    fingerprint: str | None = None,
    context: int | None = None,
    tokens: int | None = None,
) -> EmbeddedProbes:
    """Embed probes and measure whether they are independent; warns where they are not.

    Vectors of other lengths than 1 are normalised: cosines and mergers ignore the length.

    Args:
        probes: the texts, at least 2.
        embedder: any that `as_embedder` accepts, or `Embeddings`, which say all of the below; the bundled
            one for None.
        folder: where vectors are kept between runs; None for nowhere.
        name: what result files call the embedder; its own name for None.
        fingerprint: what tells it from other models; that of the object, where it has one, for None.
        context: tokens that it reads of one text; what the object tells for None.
        tokens: of those, that a probe takes; what the probes were cut to for None.

    Raises:
        InputError: fewer than 2 probes, vectors that are not finite, zero or all the same, or a folder for
            an embedder without fingerprint.
    """
    if len(probes) < 2:
        raise InputError(f"{len(probes)} probes arrived; at least 2 are needed to compare them.")
    if isinstance(embedder, Embeddings):
        embeddings = embedder
    else:
        embeddings = Embeddings(embedder, folder, fingerprint=fingerprint, name=name, max_tokens=context)
    vectors = unit(embeddings("probes", probes.texts))
    mean = mean_cosine(vectors)
    if mean > INDEPENDENT:
        warnings.warn(
            f"The mean cosine between probes is {mean:.3f}, above {INDEPENDENT}: to {embeddings.name} these "
            "texts are not independent, and scores are lower than they would be. Its languages may be "
            "others.",
            stacklevel=2,
        )
    return EmbeddedProbes(
        probes,
        embeddings.embedder,
        embeddings,
        embeddings.name,
        embeddings.fingerprint,
        embeddings.context,
        tokens or probes.tokens,
        vectors,
        round(mean, 4),
    )


def mean_cosine(vectors: Matrix) -> float:
    """The mean cosine over all pairs of different rows; (n, d) unit rows, n at least 2."""
    total = vectors.astype(np.float64).sum(axis=0)
    count = len(vectors)
    return (float(total.dot(total)) - count) / (count * (count - 1))


def _lots(
    articles: Iterable[Article], tokens: int, seed: int, languages: Collection[str] | None
) -> Iterator[tuple[bytes, bytes, str, str, str]]:
    """Each article's lot, digest, id, language and beginning."""
    for article in articles:
        if languages is None or article.language in languages:
            whole = _digest(article.text)
            lot = hashlib.blake2b(b"%d " % seed + whole, digest_size=16).digest()
            beginning = article.text.strip()[: tokens * _CHARACTERS_A_TOKEN]
            yield lot, whole, article.id, article.language, beginning


def _digest(text: str) -> bytes:
    """Over letters and digits, case ignored."""
    return hashlib.blake2b(_OTHERS.sub("", text.casefold()).encode(errors="replace"), digest_size=16).digest()


def _revision(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="replace") + b"\0")
    return digest.hexdigest()[:16]


def first_tokens(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """The longest beginning of at most `tokens` tokens, back to the last space where one is near."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    if low < len(text) and not text[low].isspace():
        words = _WORD_AT_END.search(text[:low])
        low = words.start() if words else low
    return text[:low].strip()
