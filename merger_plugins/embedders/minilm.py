"""The bundled base embedder: all-MiniLM-L6-v2 on ONNX Runtime, with no network and no torch."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from merger_plugins._artefact import Artefact, open_artefact
from merger_plugins._extras import require
from merger_plugins._session import DeviceArray, Session, SessionConfig, create_session
from merger_plugins._types import Matrix, Vector
from merger_plugins.errors import InputError

FOLDER: Final = Path(__file__).parents[1] / "models" / "all-MiniLM-L6-v2"

_TEXTS_AT_ONCE = 2048
"""Texts tokenised and sorted by length together; bounds the memory that token ids take."""

_INHERITED: list[Session] = []
"""A parent's sessions, kept in a forked child: destroying one waits for threads that stayed in the parent."""


class MiniLMEmbedder:
    """sentence-transformers/all-MiniLM-L6-v2 with 8-bit weights: 384 dimensions, unit length, English.

    A text is embedded up to its first 510 tokens, as the original does at a limit of 512; `count_tokens`
    tells beforehand. The empty string has a vector too, that of a text without tokens.

    Nothing is read before the first text. One object may be used by several threads, copied and pickled. A
    forked process loads a session of its own; as ONNX Runtime cannot take down the parent's, such a process
    should end as those of multiprocessing do (`os._exit`), or be forked before the first text.

    Attributes:
        name: name of the model.
        dimension: length of a vector.
        max_tokens: the longest input in tokens, the two special ones at its ends included.
    """

    name: Final = "all-MiniLM-L6-v2"
    dimension: Final = 384
    max_tokens: Final = 512

    def __init__(
        self,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        batch_tokens: int = 1024,
    ) -> None:
        """Describe the session; see `merger_plugins._session.SessionConfig` for the first two.

        Args:
            threads: CPU threads; None for the physical cores that the process may use.
            providers: ONNX Runtime's execution providers; None for CUDA where it works, else the CPU.
            batch_tokens: padded tokens in one run. 1,024 was the fastest on a CPU; a GPU wants more.

        Raises:
            InputError: a setting is out of range.
        """
        if type(batch_tokens) is not int or batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens!r}; it takes a number from 1 on.")
        self._config = SessionConfig(providers, threads)
        self._batch_tokens = batch_tokens
        self._clear()

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Embed texts in batches of similar length.

        Args:
            texts: any number of strings.

        Returns:
            (n, 384) float32 at unit length, in the order of `texts`; (0, 384) for none.

        Raises:
            InputError: `texts` is a string, or holds something that is not a string or not valid Unicode.
            MissingExtraError: ONNX Runtime or tokenizers is not installed.
            ArtefactError: the model's files are damaged.
            ProviderError: an execution provider that was asked for did not load.
        """
        if isinstance(texts, str):
            raise InputError(
                "embed_documents takes a sequence of texts, and one string arrived: pass [text]."
            )
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            sequences = [self._token_ids(text) for text in texts[start : start + _TEXTS_AT_ONCE]]
            for rows in self._groups(sequences):
                vectors[start + rows] = self._run([sequences[row] for row in rows])
        return vectors

    def embed_query(self, text: str) -> Vector:
        """Embed one text, in the same way as a document: (384,) float32 at unit length.

        Raises:
            InputError: it is not a string; otherwise as `embed_documents`.
        """
        vector: Vector = self._run([self._token_ids(text)])[0]
        return vector

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, the special ones left out; those after the 510th are not embedded.

        Raises:
            InputError: it is not a string, or not valid Unicode.
            MissingExtraError: tokenizers is not installed.
        """
        return len(self._encode(text)) - 2

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_batch_tokens": self._batch_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _clear(self) -> None:
        self._lock = threading.RLock()
        self._tokenizer: Any = None
        self._session: Session | None = None
        self._process = os.getpid()

    def _token_ids(self, text: str) -> list[int]:
        return self._cut(self._encode(text))

    def _cut(self, ids: list[int]) -> list[int]:
        """[CLS], at most 510 tokens, [SEP]."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _encode(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"A text to embed is a str, and {type(text).__name__} arrived: {text!r:.80}.")
        try:
            text.encode()  # some versions of tokenizers raise another error here, some none
        except UnicodeEncodeError as error:
            raise InputError(
                f"A text to embed is not valid Unicode: {error}. Decode its source with errors='replace'."
            ) from error
        tokenizer = self._tokenizer or self._load_tokenizer()
        ids: list[int] = tokenizer.encode(text).ids
        return ids

    def _groups(self, sequences: Sequence[list[int]]) -> Iterator[NDArray[np.intp]]:
        """Which sequences are run together."""
        return similar_lengths([len(ids) for ids in sequences], self._batch_tokens)

    def _run(self, sequences: Sequence[list[int]]) -> Matrix:
        vectors: Matrix = self._opened().run(["embedding"], _feed(sequences))[0]
        return vectors

    def _run_into(self, sequences: Sequence[list[int]], into: DeviceArray, start: int) -> None:
        """As `_run`, into rows of an array on the session's device."""
        session = self._opened()
        binding = session.io_binding()
        for name, array in _feed(sequences).items():
            binding.bind_cpu_input(name, array)
        into.bind_rows(binding, "embedding", start, len(sequences))
        session.run_with_iobinding(binding)

    def _opened(self) -> Session:
        session = self._session
        if session is None or self._process != os.getpid():
            session = self._load_session()
        return session

    def _load_tokenizer(self) -> Any:
        self._renew_after_fork()
        with self._lock:
            if self._tokenizer is None:
                tokenizers = require("tokenizers", extra="cpu", purpose="The bundled embedder")
                self._tokenizer = tokenizers.Tokenizer.from_buffer(_open().read("tokenizer.json"))
            return self._tokenizer

    def _load_session(self) -> Session:
        self._renew_after_fork()
        with self._lock:
            if self._session is None:
                self._session = create_session(_open().file("model.onnx"), self._config)
            return self._session

    def _renew_after_fork(self) -> None:
        if self._process != os.getpid():
            if self._session is not None:
                _INHERITED.append(self._session)
            self._clear()  # whoever held the lock stayed in the parent, too


def load_embedder(*, threads: int | None = None, providers: Sequence[str] | None = None) -> MiniLMEmbedder:
    """The default base embedder, which comes with the package; see `MiniLMEmbedder`."""
    return MiniLMEmbedder(threads=threads, providers=providers)


def _open() -> Artefact:
    return open_artefact(FOLDER, kind="embedder")


def _feed(sequences: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
    """Token ids, padded at the end."""
    ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def similar_lengths(lengths: Sequence[int], budget: int) -> Iterator[NDArray[np.intp]]:
    """Indices grouped by similar length, so that a group padded to its longest fits the budget."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * lengths[order[stop]] <= budget:
            stop += 1
        yield order[start:stop]
        start = stop
