"""Texts read and embedded, their vectors kept between runs."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from merger_plugins._artefact import open_artefact
from merger_plugins._batching import as_matrix, unit
from merger_plugins._extras import require
from merger_plugins._types import Matrix
from merger_plugins.embedders import MiniLMEmbedder, as_embedder, load_embedder
from merger_plugins.embedders.minilm import FOLDER
from merger_plugins.errors import DocumentError, InputError

_SAME = 1e-6
_NEAR_UNIT = 1e-3


def jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl or .jsonl.gz file, one after the other.

    Raises:
        DocumentError: it cannot be read, or a row is no object.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DocumentError(f"{path}, line {number}: expected an object, such as {{...}}.")
                yield row
    except (OSError, EOFError, ValueError) as error:
        raise DocumentError(f"{path}: cannot be read as JSON lines ({error}). Check the file.") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a .jsonl or .jsonl.gz file; raises as `jsonl_rows`."""
    return list(jsonl_rows(path))


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


class Embeddings:
    """An embedder whose vectors are kept between runs.

    Args:
        embedder: any that `as_embedder` accepts; the bundled one for None.
        folder: where vectors are kept; None for nowhere.
        fingerprint: tells this embedder from others in that folder; known of the bundled one.

    Raises:
        InputError: no known embedder, or a folder without the fingerprint that it takes.
    """

    def __init__(
        self, embedder: Any = None, folder: Path | None = None, *, fingerprint: str | None = None
    ) -> None:
        self.embedder = load_embedder() if embedder is None else as_embedder(embedder)
        self._queries_alike = isinstance(self.embedder, MiniLMEmbedder)
        if fingerprint is None and isinstance(self.embedder, MiniLMEmbedder):
            fingerprint = open_artefact(FOLDER).fingerprint
        if folder is not None and fingerprint is None:
            raise InputError(
                "Vectors of this embedder cannot be kept, as nothing tells it from others: pass "
                "fingerprint=, such as the model's name and revision, or no folder."
            )
        self.folder = folder
        self.fingerprint = fingerprint

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
        return self._kept(name, list(texts), queries=not self._queries_alike)

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
