"""`MergerEmbeddings`: long texts are merged from their chunks instead of cut off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from merger_plugins._extras import missing
from merger_plugins.chunking import Chunker
from merger_plugins.embedders.long_texts import UNKNOWN_TOKENIZER_MARGIN, LongTexts
from merger_plugins.mergers.base import SequenceMerger

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "langchain_core":
        raise  # installed, but broken inside: that is not ours to reword
    raise missing("langchain-core", extra="langchain", purpose="MergerEmbeddings") from error

__all__ = ["UNKNOWN_TOKENIZER_MARGIN", "MergerEmbeddings"]


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
    with LangChain's ``CacheBackedEmbeddings``, put the model's name, ``merger.fingerprint`` and what else you
    choose, such as `max_tokens`, into the namespace, and give queries a cache of their own
    (``query_embedding_cache=another_store``), as a text has another vector as a document.
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
        self._texts = LongTexts(
            embeddings,
            merger=merger,
            max_tokens=max_tokens,
            count_tokens=count_tokens,
            chunker=chunker,
            coroutines=("aembed_documents", "aembed_query"),
        )

    @property
    def merger(self) -> SequenceMerger:
        """What merges. Keep a calibrated one: ``merger.save(folder)``, then pass ``load_merger(folder)``."""
        return self._texts.merger

    def __repr__(self) -> str:
        return f"MergerEmbeddings({self._texts.embedder.name}, merger={self.merger!r})"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in the order of the texts; no vectors for no texts.

        Raises:
            InputError: `texts` is one string, or holds something that is not a string; the wrapped embedder
                returned another number of vectors, vectors of unequal length, NaN or infinity; the chunker
                gave a chunk longer than the context; or the merger works in another dimension.
        """
        return self._texts.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        """The wrapped embedder's own vector of a query, which is never split.

        Raises:
            InputError: it is not a string, or the wrapped embedder gave something else than a finite vector.
        """
        return self._texts.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, by the wrapped embeddings' own ``aembed_documents`` where they have one."""
        return await self._texts.aembed(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, by the wrapped embeddings' own ``aembed_query`` where they have one."""
        return await self._texts.aembed_query(text)

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
        made = copy.copy(self)
        made._texts = self._texts.calibrated(texts)
        return made
