"""Chroma: the ingestion hook, in this process or on a server."""

from __future__ import annotations

from typing import Any

from merger_plugins._extras import require
from merger_plugins.chunking import Chunker
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.stores.store import MergedStore

require("chromadb", extra="chroma", purpose="merger_plugins.chroma")

from merger_plugins.chroma.backend import ChromaBackend  # noqa: E402 - after the check that it is there
from merger_plugins.chroma.connection import Location  # noqa: E402
from merger_plugins.chroma.embedding import MergerEmbeddingFunction  # noqa: E402

__all__ = ["ChromaBackend", "ChromaStore", "MergerEmbeddingFunction"]


class ChromaStore(MergedStore):
    """Documents and conversations in Chroma, searchable on every level of their trees.

    Chunk points live in the collection itself, in the form that LangChain's Chroma store reads: the text as
    Chroma's document, the user's metadata as it is, ours under ``merger:``. Sections, roots and settings are
    in a companion, ``<collection>__merged``, and contextual vectors, if asked for, in another,
    ``<collection>__contextual``. See `MergedStore` for what it can do.

    ``filter=`` takes a mapping of metadata key -> value or list of values, as in every store, or Chroma's own
    ``where``; both may stand in one mapping, as Chroma's keys and operators begin with ``$``:
    ``{"lang": "en", "year": {"$gte": 2020}}``. A value inside a list of the metadata is found like a value,
    one inside a mapping by its path, ``"author.name"``.

    A folder is for one process at a time; another is refused. Several stores of one process may share it. A
    server may be read by many processes and should be written by one.

    Args:
        location: a folder for Chroma in this process; ``":memory:"``, which is this store's alone; the URL of
            a server, its port included; or a chromadb client, which stays open when the store is closed.
            Where this process has a client for a folder already, pass that: two of them do not see each
            other's writes.
        collection: name of the collection; made when something is ingested, if it is not there. One that
            exists must compare by cosine. A new one for the bundled embedder gets `MergerEmbeddingFunction`.
        merger: see `MergedStore`, as for all that follow.
        embedder: as above.
        chunker: as above.
        contextual: as above.
    """

    def __init__(
        self,
        location: Location,
        collection: str = "documents",
        *,
        merger: SequenceMerger | None = None,
        embedder: Any = None,
        chunker: Chunker | None = None,
        contextual: bool = False,
    ) -> None:
        bundled = embedder is None or isinstance(embedder, MiniLMEmbedder)
        super().__init__(
            ChromaBackend(location, collection, embedding=bundled),
            merger=merger,
            embedder=embedder,
            chunker=chunker,
            contextual=contextual,
        )
