"""Applications as they are: a LlamaIndex index over a small corpus, and what watches it."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import llama_index.core
import nltk
import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pydantic import PrivateAttr
from qdrant_client import AsyncQdrantClient, QdrantClient

from merger_plugins import MeanMerger, SequenceMerger
from merger_plugins._threads import in_thread
from merger_plugins.chroma import ChromaStore
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import MergedStore
from tests.strategies import Array

# LlamaIndex brings the data of its splitters along, and does not look there in every version and worker.
_DATA = Path(llama_index.core.__file__).parent / "_static"
nltk.data.path.append(str(_DATA / "nltk_cache"))
os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(_DATA / "tiktoken_cache"))

DIMENSION = 256
KINDS = ("simple", "qdrant", "chroma")
QUESTION = "Which notes name the lamp or the honey?"

_TOPICS = {
    "tower": "tower reef lamp keeper lens storm stair gallery signal oil glass lantern",
    "bees": "hive queen drone comb wax nectar swarm frame smoker honey sting brood",
    "bread": "flour yeast dough oven crust salt starter loaf proof crumb knead score",
    "lease": "rent deposit tenant notice landlord clause month repair key pet heating bill",
}


def _sentences(topic: str, words: str) -> list[str]:
    rng = np.random.default_rng(len(topic))
    vocabulary = words.split()
    return [
        f"Of the {topic} it is said in note {number} that {' '.join(rng.permutation(vocabulary)[:5])} matter."
        for number in range(26)
    ]


def documents() -> list[Document]:
    texts = {topic: " ".join(_sentences(topic, words)) for topic, words in _TOPICS.items()}
    texts["tower"] = f"The lamp of the reef tower was lit in 1871. {texts['tower']}"
    return [
        Document(text=text, id_=name, metadata={"topic": name, "year": 1870 + number})
        for number, (name, text) in enumerate(texts.items())
    ]


def word_vector(text: str, dimension: int = DIMENSION) -> Array:
    """The sum of one fixed random vector a word; any other text has another vector."""
    words = re.findall(r"\w+", text.lower()) or [""]
    return np.sum([_word(word, dimension) for word in words], axis=0)


def _word(word: str, dimension: int) -> Array:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(dimension)


class WordModel(BaseEmbedding):
    """An embedding model with coroutines of its own; counts what it is asked for, and how."""

    dimension: int = DIMENSION
    _asked: Counter[str] = PrivateAttr(default_factory=Counter)

    @classmethod
    def class_name(cls) -> str:
        return "WordModel"

    @property
    def asked(self) -> Counter[str]:
        return self._asked

    def _get_query_embedding(self, query: str) -> list[float]:
        self._asked["query"] += 1
        return word_vector(query, self.dimension).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        self._asked["query awaited"] += 1
        return word_vector(query, self.dimension).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        self._asked["text"] += 1
        return word_vector(text, self.dimension).tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        self._asked["text awaited"] += 1
        return word_vector(text, self.dimension).tolist()


class PlainModel(WordModel):
    """A model whose texts the host would embed in the event loop itself."""

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await in_thread(self._get_query_embedding, query)

    _aget_text_embedding = BaseEmbedding._aget_text_embedding


@dataclass
class App:
    """An index, what its hook is made of, and its model."""

    kind: str
    index: VectorStoreIndex
    model: WordModel
    client: Any
    collection: str

    @property
    def store(self) -> BasePydanticVectorStore:
        return self.index.storage_context.vector_store

    def hook(self, **settings: Any) -> MergedStore:
        """Not back-filled."""
        made = QdrantStore if self.kind == "qdrant" else ChromaStore
        return made(self.client, self.collection, embedder=self.model, **settings)

    def retrieved(self, question: str = QUESTION, k: int = 8) -> list[NodeWithScore]:
        found = self.index.as_retriever(similarity_top_k=k).retrieve(question)
        self.model.asked.clear()
        return found

    def nodes(self) -> dict[str, list[BaseNode]]:
        """All chunk nodes with their vectors, as they were indexed, by document."""
        split = splitter().get_nodes_from_documents(documents())
        for node in split:
            node.embedding = word_vector(node.get_content(metadata_mode=MetadataMode.EMBED)).tolist()
        return {
            document.id_: [node for node in split if node.ref_doc_id == document.id_]
            for document in documents()
        }


def splitter() -> SentenceSplitter:
    return SentenceSplitter(chunk_size=40, chunk_overlap=18, tokenizer=str.split)


def app(kind: str, model: WordModel | None = None) -> App:
    model = model or WordModel()
    collection = f"docs-{uuid4().hex[:8]}"
    client: Any = None
    store: BasePydanticVectorStore | None = None
    if kind == "qdrant":
        client = QdrantClient(":memory:")
        coroutines = AsyncQdrantClient(":memory:")
        coroutines._client.collections = client._client.collections  # two clients of one memory
        store = QdrantVectorStore(collection, client=client, aclient=coroutines)
    elif kind == "chroma":
        client = chromadb.EphemeralClient()
        made = client.create_collection(collection, metadata={"hnsw:space": "cosine"})
        store = ChromaVectorStore(chroma_collection=made)
    index = VectorStoreIndex.from_documents(
        documents(),
        storage_context=StorageContext.from_defaults(vector_store=store) if store else None,
        embed_model=model,
        transformations=[splitter()],
    )
    model.asked.clear()
    return App(kind, index, model, client, collection)


def calibrated() -> SequenceMerger:
    """Of the space of `WordModel`."""
    return MeanMerger().calibrated([word_vector(f"word{number}") for number in range(200)])


def level(nodes: Any, name: str) -> list[Any]:
    """The merged nodes of a level among nodes."""
    return [node for node in nodes if node.metadata.get("merger_level") == name]


def ranking(nodes: list[NodeWithScore]) -> list[tuple[str, float]]:
    return [(found.node.node_id, found.score or 0.0) for found in nodes]


def assert_same(one: list[NodeWithScore], other: list[NodeWithScore]) -> None:
    assert [name for name, _ in ranking(one)] == [name for name, _ in ranking(other)]
    np.testing.assert_allclose([s for _, s in ranking(one)], [s for _, s in ranking(other)], atol=1e-6)


@contextmanager
def nothing_blocks(monkeypatch: pytest.MonkeyPatch, *methods: tuple[Any, str]) -> Iterator[Counter[str]]:
    """Fail where one of these is called in the thread of the event loop; counts the calls elsewhere."""
    here = threading.current_thread()
    seen: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for owner, name in methods:
            original = getattr(owner, name)

            def watched(
                *args: Any, _original: Any = original, _name: str = f"{owner.__name__}.{name}", **kwargs: Any
            ) -> Any:
                assert threading.current_thread() is not here, f"{_name} was called in the event loop"
                seen[_name] += 1
                return _original(*args, **kwargs)

            patch.setattr(owner, name, watched)
        yield seen
