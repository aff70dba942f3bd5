"""Texts read and embedded, their vectors kept between runs."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from merger_plugins._artefact import open_artefact
from merger_plugins._batching import as_matrix, unit
from merger_plugins._extras import require
from merger_plugins._types import Matrix
from merger_plugins.embedders import Embedder, MiniLMEmbedder, WrappedEmbedder, as_embedder, load_embedder
from merger_plugins.embedders.checked import context_of
from merger_plugins.embedders.long_texts import UNKNOWN_TOKENIZER_MARGIN
from merger_plugins.embedders.minilm import FOLDER
from merger_plugins.embedders.naming import embedder_named
from merger_plugins.errors import DocumentError, InputError

SPECIAL_TOKENS = 2
"""What models add to a text at its ends, out of their context."""

_ASKED = (
    "The harbour froze over in the second week of January.",
    "def area(width, height): return width * height",
    "Ein Lehrling stellte die Uhr um sieben Minuten vor.",
    "어제 배운 노래를 오늘 다시 불렀다.",
    "Почему река течёт на север?",
)
_SAME = 1e-6
_NEAR_UNIT = 1e-3


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a .jsonl or .jsonl.gz file, one after the other, with their line; blank lines are none.

    Raises:
        DocumentError: it cannot be read, or a row is no object.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = _row(line)
                if not isinstance(row, dict):
                    raise DocumentError(f"{path}, line {number}: expected an object, such as {{...}}.")
                yield number, row
    except json.JSONDecodeError as error:
        raise DocumentError(
            f"{path}, line {number}: no JSON ({error.msg} at character {error.pos + 1}). Correct the line."
        ) from error
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path}, after line {number}: no UTF-8 ({error}). Save the file as UTF-8."
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise DocumentError(f"{path}: cannot be read as JSON lines ({error}). Check the file.") from error


def _row(line: str) -> Any:
    try:
        return json.loads(line.rstrip("\r\n"))
    except RecursionError as error:
        raise json.JSONDecodeError("too many brackets in each other", line, 0) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a .jsonl or .jsonl.gz file; raises as `jsonl_rows`."""
    return [row for _, row in jsonl_rows(path)]


def revision(files: Iterable[Path]) -> str:
    """Tells whether the data changed: a digest of the files, in this order."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def cut(text: str, tokens: int) -> str:
    """The text up to its first `tokens` tokens of the bundled tokenizer."""
    offsets = _tokenizer().encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


@cache
def _tokenizer() -> Any:
    tokenizers = require("tokenizers", extra="bench", purpose="Cutting texts")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer


def check_apart(vectors: Matrix, what: str) -> None:
    """Refuse vectors that are all the same.

    Args:
        vectors: (n, d).
        what: how the message calls them.

    Raises:
        InputError: they are, but for rounding.
    """
    if float(np.ptp(vectors, axis=0).max()) < _SAME:
        raise InputError(
            f"{what} are all the same, so that nothing can be told apart. Check that the embedder reads its "
            "input."
        )


def embedder_fingerprint(embedder: Embedder, context: int | None) -> str:
    """What tells an embedder from others, checked on a few sentences.

    It is its own ``fingerprint``, where it has one. Otherwise 16 hexadecimal digits follow from its context
    and from the signs of what it makes of the sentences and of a text of 1,000 words: rounding changes hardly
    any.

    Args:
        embedder: as `as_embedder` gives it.
        context: tokens that it reads of a text; None where it does not tell.

    Raises:
        InputError: its vectors are not finite, zero, or all the same.
    """
    documents = as_matrix(embedder.embed_documents(_ASKED), what="the embedder's answer")
    check_apart(documents, f"The embedder's vectors of {len(_ASKED)} different texts")
    if own := _own_fingerprint(embedder):
        return own
    long = embedder.embed_documents([" ".join(_ASKED[:1] * 100)])
    queries = np.stack([embedder.embed_query(text) for text in _ASKED[:2]])
    signs = np.packbits(np.concatenate([documents, long, queries]) > 0).tobytes()
    return hashlib.sha256(f"{documents.shape[1]} {context} ".encode() + signs).hexdigest()[:16]


class Embeddings:
    """An embedder whose vectors are kept between runs.

    Args:
        embedder: any that `as_embedder` accepts; the bundled one for None.
        folder: where vectors are kept; None for nowhere.
        fingerprint: tells this embedder from others in that folder; its own, where it has one, for None.
        name: what results call it; its own name, or that of its class, for None.
        max_tokens: its context, special tokens included; what it tells for None.

    Attributes:
        context: tokens that it reads of one text; None where nobody tells.

    Raises:
        InputError: no known embedder, a folder without the fingerprint that it takes, or a context that is
            larger than the embedder's or too short for a chunk.
    """

    def __init__(
        self,
        embedder: Any = None,
        folder: Path | None = None,
        *,
        fingerprint: str | None = None,
        name: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.embedder: Embedder = load_embedder() if embedder is None else as_embedder(embedder)
        fingerprint = fingerprint or _own_fingerprint(self.embedder)
        if folder is not None and fingerprint is None:
            raise InputError(
                "Vectors of this embedder cannot be kept, as nothing tells it from others: pass "
                "fingerprint=, such as the model's name and revision, or no folder."
            )
        source = _source(self.embedder)
        self.folder = folder
        self.fingerprint = fingerprint
        self.name = name or str(getattr(source, "name", type(source).__qualname__))
        known, self._count = context_of(source)
        self.context = _checked_context(self.name, known, max_tokens)

    @classmethod
    def named(cls, name: str, folder: Path | None = None, *, max_tokens: int | None = None) -> Embeddings:
        """Those of an embedder that somebody names.

        Args:
            name: as `embedder_named` takes it.
            folder: as above.
            max_tokens: as above.

        Raises:
            InputError: as `embedder_named`, `embedder_fingerprint` or above.
            MissingExtraError: as `embedder_named`.
        """
        embedder = as_embedder(embedder_named(name))
        context = max_tokens or context_of(_source(embedder))[0]
        return cls(
            embedder,
            folder,
            fingerprint=embedder_fingerprint(embedder, context),
            name=Path(name).resolve().name if Path(name).is_dir() else name,
            max_tokens=max_tokens,
        )

    @property
    def bundled(self) -> bool:
        """Whether it is the bundled embedder."""
        return isinstance(self.embedder, MiniLMEmbedder)

    @property
    def room(self) -> int | None:
        """Tokens of the bundled tokenizer that it reads for certain; None where its context is unknown."""
        if self.context is None:
            return None
        room = self.context - SPECIAL_TOKENS
        return room if self.bundled else int(room / UNKNOWN_TOKENIZER_MARGIN)

    def tokens_at_most(self, texts: Sequence[str], tokens: int) -> int:
        """How much of its context the longest of some texts takes.

        Args:
            texts: at least one.
            tokens: of the bundled tokenizer, that none of them exceeds.
        """
        if self.bundled:
            return tokens
        if self._count is None:
            return math.ceil(tokens * UNKNOWN_TOKENIZER_MARGIN)
        return max(map(self._count, texts))

    def __call__(self, name: str, texts: Sequence[str]) -> Matrix:
        """Embed texts, or read what an earlier run embedded from the same texts.

        Args:
            name: what the file begins with.
            texts: at least one.

        Returns:
            (n, d) float32; unit rows, normalised here where the embedder does not.

        Raises:
            InputError: no texts, or vectors that are not finite, zero, or all the same.
        """
        return self._kept(name, list(texts), queries=False)

    def queries(self, name: str, texts: Sequence[str]) -> Matrix:
        """As a call, of search queries."""
        return self._kept(name, list(texts), queries=not self.bundled)

    def _kept(self, name: str, texts: list[str], *, queries: bool) -> Matrix:
        if self.folder is None:
            return self._embed(texts, queries=queries)
        digest = hashlib.sha256((self.fingerprint or "").encode() + b"queries" * queries)
        for text in texts:
            digest.update(text.encode() + b"\0")
        path = self.folder / f"{name}-{digest.hexdigest()[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, self._embed(texts, queries=queries))
            partial.replace(path)
        kept: Matrix = np.load(path, allow_pickle=False)
        return kept

    def _embed(self, texts: list[str], *, queries: bool) -> Matrix:
        if queries:
            found: Any = [self.embedder.embed_query(text) for text in texts]
        else:
            found = self.embedder.embed_documents(texts)
        vectors = as_matrix(found, what="the embedder's answer")
        if len(set(texts)) > 1:
            check_apart(vectors, f"The embedder's vectors of {len(set(texts))} different texts")
        lengths = np.linalg.norm(vectors, axis=1)
        return vectors if np.abs(lengths - 1).max() < _NEAR_UNIT else unit(vectors)


def _source(embedder: Embedder) -> Any:
    return embedder.source if isinstance(embedder, WrappedEmbedder) else embedder


def _own_fingerprint(embedder: Embedder) -> str | None:
    if isinstance(embedder, MiniLMEmbedder):
        return open_artefact(FOLDER).fingerprint
    own = getattr(_source(embedder), "fingerprint", None)
    return own if isinstance(own, str) and own else None


def _checked_context(name: str, known: int | None, stated: int | None) -> int | None:
    if stated is None:
        return known
    if known is not None and stated > known:
        raise InputError(f"max_tokens is {stated}, and the embedder {name} reads {known} tokens at the most.")
    if stated <= SPECIAL_TOKENS:
        raise InputError(f"max_tokens is {stated}; {SPECIAL_TOKENS} are special tokens, so more are needed.")
    return stated
