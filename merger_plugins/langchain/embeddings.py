"""`MergerEmbeddings`: long texts are merged from their chunks instead of cut off."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins._batching import unit
from merger_plugins._extras import missing
from merger_plugins._types import Matrix
from merger_plugins.chunking import CHUNK_TOKENS, Chunk, Chunker, SentenceChunker
from merger_plugins.embedders import MiniLMEmbedder, WrappedEmbedder, as_embedder, load_embedder
from merger_plugins.errors import DimensionError, InputError, NonFiniteError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.mergers.mean import MeanMerger

try:
    from langchain_core.embeddings import Embeddings
    from langchain_core.runnables.config import run_in_executor
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "langchain_core":
        raise  # installed, but broken inside: that is not ours to reword
    raise missing("langchain-core", extra="langchain", purpose="MergerEmbeddings") from error

__all__ = ["UNKNOWN_TOKENIZER_MARGIN", "MergerEmbeddings"]

UNKNOWN_TOKENIZER_MARGIN = 1.4
"""Tokens that a model may make of one token of the bundled tokenizer, where its own is not known.

Five tokenizers of large models made less of 99 in 100 pieces of English, German, Spanish, Russian and Korean
text; of Chinese up to 1.6 and of Vietnamese up to 1.9.
"""

_SPECIAL_TOKENS = 2
_WHOLE_SENTENCE = 1.5  # a chunk of SentenceChunker may be longer than its size by this factor
_LONGEST_CONTEXT = 10_000_000  # a tokenizer without a limit says 1e30
_SHORTEST = 1e-12  # a vector below this length has no direction in float32
_SAME_DIRECTION = 1 - 1e-6
_TEXTS_AT_ONCE = 64


class MergerEmbeddings(Embeddings):
    """Wraps embeddings so that a text longer than the model's context is merged instead of cut off.

    A long text is split into chunks. Short texts, the chunks of all long texts and their openings (as much as
    the model reads of them) are embedded in one call. The vector of a long text points half where the vector
    of its opening does, as it did before, and half where the merge of its chunk vectors does, masses in
    tokens; it is as long as the vector of its opening. Short texts, the empty text and queries keep exactly
    the numbers that the wrapped model gave. So in an index that exists only the long texts are added anew.

    The default merger is the mean, whatever the model. nDCG@10 of the right document, bundled embedder; first
    with every document stored whole, then with a random half of them stored as passages of up to 250 tokens
    (``python -m benchmarks.long_texts``):

    ============================================  ===========  ===========  ===========
    stored for a long text                        demo corpus  XQuAD-en     COVID-QA
    ============================================  ===========  ===========  ===========
    the wrapped model's vector: cut off           0.939 0.847  0.891 0.908  0.500 0.525
    mean of its chunk vectors                     0.798 0.807  0.913 0.934  0.560 0.620
    half opening, half mean: the default          0.924 0.866  0.912 0.931  0.565 0.613
    ``merger=load_merger()``                      0.945 0.907  0.933 0.945  0.585 0.625
    `calibrated`                                  0.971 0.955  0.942 0.952  0.666 0.671
    `calibrated`, but passages with raw vectors   0.971 0.689  0.942 0.847  0.666 0.391
    ============================================  ===========  ===========  ===========

    A mean alone forgets what the title said. A calibrated vector has a lower cosine with a query than the raw
    vector of the same text, so one index holds the one kind or the other: a merger that changes single
    vectors, as `CalibratedMerger` does, is given short texts too. Query vectors stay raw in every case.

    Nothing is read or loaded before the first text. Results depend on a text alone, so vectors may be cached;
    with LangChain's ``CacheBackedEmbeddings``, put the model's name and ``merger.fingerprint`` into the
    namespace.

    Attributes:
        merger: what merges. A calibrated one is kept with ``merger.save(folder)`` and passed again as
            ``merger=load_merger(folder)``.
    """

    def __init__(
        self,
        embeddings: Any = None,
        *,
        merger: SequenceMerger | None = None,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        chunker: Chunker | None = None,
    ) -> None:
        """Say what to wrap and how long its context is.

        Args:
            embeddings: LangChain ``Embeddings``, or anything that `as_embedder` accepts; None for the bundled
                embedder.
            merger: one for the wrapped model's vector space; `MeanMerger` for None. What `load_merger` gives
                belongs to the bundled embedder's space and to no other.
            max_tokens: the model's context as its card states it, its two special tokens included. Needed
                where the embeddings do not tell it. The bundled embedder does, those that hold a
                sentence-transformers model do (LangChain's ``HuggingFaceEmbeddings``), and
                ``OpenAIEmbeddings``.
            count_tokens: gives the number of tokens of a text, without special tokens. None for the wrapped
                model's own tokenizer where it can be reached, else for the bundled one, of which each token
                counts as `UNKNOWN_TOKENIZER_MARGIN`. Pass it for Chinese, Vietnamese and other languages that
                this covers too thinly.
            chunker: how to split long texts; `SentenceChunker` for None.

        Raises:
            InputError: `embeddings` is of no known kind or does not tell its context, or `max_tokens` is out
                of range.
        """
        self._wrapped = wrapped = _Wrapped.of(load_embedder() if embeddings is None else embeddings)
        if max_tokens is None:
            max_tokens = wrapped.max_tokens
        if max_tokens is None:
            raise InputError(
                f"{wrapped.name} does not tell how many tokens of a text it reads before it cuts it off. "
                "Pass max_tokens=, the context that the model's card states, such as 512; and count_tokens=, "
                "its tokenizer's count, where you have it."
            )
        if type(max_tokens) is not int or max_tokens <= _SPECIAL_TOKENS:
            raise InputError(
                f"max_tokens is {max_tokens!r}, where a number above {_SPECIAL_TOKENS} was expected."
            )
        self.merger = merger or MeanMerger()
        self._room = max_tokens - _SPECIAL_TOKENS
        own_count = count_tokens or wrapped.count_tokens
        if own_count is None:
            self._room = max(int(self._room / UNKNOWN_TOKENIZER_MARGIN), 1)
        self._count_tokens = own_count or load_embedder().count_tokens
        size = max(min(CHUNK_TOKENS, int(self._room / _WHOLE_SENTENCE)), 1)
        self._chunker = chunker or SentenceChunker(size, self._count_tokens)

    def __repr__(self) -> str:
        return f"MergerEmbeddings({self._wrapped.name}, merger={self.merger!r})"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in the order of the texts; no vectors for no texts.

        Raises:
            InputError: `texts` is one string, or holds something that is not a string; the wrapped embedder
                returned another number of vectors, vectors of unequal length, NaN or infinity; the chunker
                gave a chunk longer than the context; or the merger works in another dimension.
        """
        batch = self._batch(texts)
        return self._merged(batch, self._wrapped.embed(batch.pieces)) if batch.pieces else []

    def embed_query(self, text: str) -> list[float]:
        """The wrapped embedder's own vector of a query, which is never split.

        Raises:
            InputError: it is not a string, or the wrapped embedder gave something else than a finite vector.
        """
        return self._wrapped.embed_query(_checked(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, by the wrapped embeddings' own ``aembed_documents`` where they have one."""
        batch = await run_in_executor(None, self._batch, texts)
        if not batch.pieces:
            return []
        return await run_in_executor(None, self._merged, batch, await self._wrapped.aembed(batch.pieces))

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, by the wrapped embeddings' own ``aembed_query`` where they have one."""
        return await self._wrapped.aembed_query(_checked(text))

    def calibrated(self, texts: Iterable[str]) -> MergerEmbeddings:
        """Embeddings for a new index, with a merger calibrated on the chunk vectors of its texts.

        They rank best, but share no index with vectors of other embeddings, as short texts are calibrated
        too. Make them again when the collection has grown manifold.

        Args:
            texts: what the index will hold, long and short, or a sample of it. Of five random halves, the
                worst cost 0.022 of the figures above with the 16 demo documents, 0.012 with COVID-QA's 98.
                Read once, in a stream, split into chunks and embedded.

        Returns:
            New embeddings; these are unchanged.

        Raises:
            InputError: as `embed_documents`, or there are no texts.
            ArtefactError: the bundled merger's files are damaged.
        """
        merger = self.merger
        if isinstance(merger, MeanMerger) and self._wrapped.bundled:
            merger = load_merger()  # its background is that of the bundled embedder's space
        made = copy.copy(self)
        made.merger = merger.calibrated(self._chunk_vectors(texts))
        return made

    def _chunk_vectors(self, texts: Iterable[str]) -> Iterator[Matrix]:
        """(n, d) of each text that has chunks, a few texts embedded at a time."""
        rest = iter(_not_one_string(texts))
        while some := list(islice(rest, _TEXTS_AT_ONCE)):
            documents = [self._split(text) for text in some if _checked(text).strip()]
            pieces = [chunk.text for chunks in documents for chunk in chunks]
            vectors = self._wrapped.embed(pieces) if pieces else np.empty((0, 1))
            for part in np.split(vectors, np.cumsum([len(chunks) for chunks in documents])):
                if (usable := _directed(part)).any():
                    yield part[usable].astype(np.float32)

    def _batch(self, texts: Iterable[str]) -> _Batch:
        batch = _Batch()
        checked = [_checked(text, f" number {number}") for number, text in enumerate(_not_one_string(texts))]
        for text in checked:
            if not text.strip() or self._count_tokens(text) <= self._room:
                batch.add(text)
            else:
                chunks = self._split(text)
                batch.add(self._opening(text, chunks), chunks)
        return batch

    def _split(self, text: str) -> list[Chunk]:
        chunks = self._chunker.split(text)
        longest = max((chunk.tokens for chunk in chunks), default=0)
        if not 0 < longest <= self._room:
            raise InputError(
                f"{self._chunker!r} gave {len(chunks)} chunks, the longest of {longest} tokens, for a text "
                f"of {len(text)} characters. Expected are chunks of 1 to {self._room} tokens, which is what "
                f"{self._wrapped.name} reads: pass another chunker."
            )
        return chunks

    def _opening(self, text: str, chunks: Sequence[Chunk]) -> str:
        """As many whole chunks from the start as the model reads."""

        def tokens_up_to(chunk: Chunk) -> int:
            return self._count_tokens(text[: chunk.end])

        fitting = bisect_right(chunks, self._room, key=tokens_up_to)
        return text[: chunks[max(fitting, 1) - 1].end]

    def _merged(self, batch: _Batch, vectors: NDArray[np.float64]) -> list[list[float]]:
        """(number of pieces, d) -> one vector a text."""
        usable = _directed(vectors)
        narrow = vectors.astype(np.float32)
        results = vectors[batch.heads]
        sequences, masses, owners = [], [], []
        for text, (head, weights) in enumerate(zip(batch.heads, batch.masses, strict=True)):
            if not usable[head]:
                continue  # some models give zeros for a text without known words: that stays as it is
            sequences.append(narrow[head : head + 1])
            masses.append(np.ones(1))
            owners.append(text)
            chunks = np.flatnonzero(usable[head + 1 : head + 1 + len(weights)])
            if len(chunks):
                sequences.append(narrow[head + 1 + chunks])
                masses.append(np.array(weights)[chunks])
                owners.append(text)
        if sequences:
            directions = np.zeros_like(results, np.float32)
            np.add.at(directions, owners, self.merger.merge_many(sequences, masses=masses))
            lengths = np.linalg.norm(results, axis=1)
            merged = unit(directions) * lengths[:, None]
            changed = np.einsum("td,td->t", merged, results) < _SAME_DIRECTION * lengths**2
            results[changed] = merged[changed]
        listed: list[list[float]] = results.tolist()
        return listed


@dataclass
class _Batch:
    """What is embedded for a list of texts, in one call.

    Attributes:
        pieces: for each text itself, or its opening and then its chunks.
        heads: where each text begins in `pieces`.
        masses: of each text's chunks; none for a short text.
    """

    pieces: list[str] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    masses: list[list[int]] = field(default_factory=list)

    def add(self, head: str, chunks: Sequence[Chunk] = ()) -> None:
        """Append one text."""
        self.heads.append(len(self.pieces))
        self.pieces += [head, *(chunk.text for chunk in chunks)]
        self.masses.append([chunk.tokens for chunk in chunks])


@dataclass(frozen=True)
class _Wrapped:
    """The embeddings inside, their answers checked and widened to float64, which keeps every number.

    Attributes:
        source: the object that was passed.
        documents: its method for texts.
        query: its method for a query.
        max_tokens: its context; None where it does not tell.
        count_tokens: its tokenizer's count; None where that cannot be reached.
    """

    source: Any
    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    max_tokens: int | None
    count_tokens: Callable[[str], int] | None

    @classmethod
    def of(cls, embeddings: Any) -> _Wrapped:
        """Any object that `as_embedder` accepts."""
        embedder = as_embedder(embeddings)
        if isinstance(embedder, WrappedEmbedder):
            return cls(embedder.source, embedder.documents, embedder.query, *_context(embedder.source))
        return cls(embedder, embedder.embed_documents, embedder.embed_query, *_context(embedder))

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self.source).__qualname__

    @property
    def bundled(self) -> bool:
        """Whether it is the bundled embedder."""
        return isinstance(self.source, MiniLMEmbedder)

    def embed(self, texts: list[str]) -> NDArray[np.float64]:
        """(n, d), one row a text."""
        return self._rows(self.documents(texts), len(texts))

    def embed_query(self, text: str) -> list[float]:
        """A query's vector."""
        return self._only(self.query(text))

    async def aembed(self, texts: list[str]) -> NDArray[np.float64]:
        """As `embed`."""
        if callable(method := getattr(self.source, "aembed_documents", None)):
            return self._rows(await method(texts), len(texts))
        return await run_in_executor(None, self.embed, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        if callable(method := getattr(self.source, "aembed_query", None)):
            return self._only(await method(text))
        return await run_in_executor(None, self.embed_query, text)

    def _only(self, result: Any) -> list[float]:
        vector: list[float] = self._rows([result], 1)[0].tolist()
        return vector

    def _rows(self, result: Any, count: int) -> NDArray[np.float64]:
        try:
            array = np.asarray(result, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DimensionError(
                f"{self.name} returned no rows of numbers, all of one length, for {count} texts: {error}."
            ) from error
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise DimensionError(
                f"{self.name} returned an array of shape {array.shape} for {count} texts, where ({count}, d) "
                "was expected. Check it with embed_documents on these texts alone."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{self.name} returned NaN or infinity. Check the model and its precision.")
        return array


def _context(source: Any) -> tuple[int | None, Callable[[str], int] | None]:
    """The context and the token count of embeddings that tell them."""
    if isinstance(source, MiniLMEmbedder):
        return source.max_tokens, source.count_tokens
    # A sentence-transformers model: itself, or held by langchain-huggingface as _client, by
    # langchain-community as client, by LlamaIndex as _model.
    for model in (source, *(getattr(source, name, None) for name in ("_client", "client", "_model"))):
        limit = getattr(model, "max_seq_length", None)
        if isinstance(limit, int) and 0 < limit < _LONGEST_CONTEXT:
            tokenizer = getattr(model, "tokenizer", None)
            known = callable(tokenizer) and hasattr(tokenizer, "model_max_length")
            return limit, partial(_tokens_of, tokenizer) if known else None
    limit = getattr(source, "embedding_ctx_length", None)  # OpenAIEmbeddings
    return (limit if isinstance(limit, int) else None), None


def _tokens_of(tokenizer: Any, text: str) -> int:
    """The token count of a Hugging Face tokenizer, without special tokens and however long the text is."""
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _directed(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """(n, d) -> (n,) which of them are long enough to have a direction."""
    directed: NDArray[np.bool_] = np.linalg.norm(vectors, axis=1) > _SHORTEST
    return directed


def _checked(text: str, which: str = "") -> str:
    if not isinstance(text, str):
        raise InputError(f"Text{which} is a {type(text).__name__}, where a str was expected: {text!r:.80}.")
    return text


def _not_one_string(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"A list of texts was expected, and a {type(texts).__name__} arrived: pass [text].")
    return texts
