"""Applications as they are: a LangChain vector store over a small corpus."""

from __future__ import annotations

from functools import cache
from typing import Any

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from merger_plugins.chroma import ChromaStore
from merger_plugins.embedders import load_embedder
from merger_plugins.stores import MergedStore

SUBJECTS = {
    "lighthouse": [
        "The tower stands on a reef.",
        "Its lamp was lit in 1871.",
        "Three keepers lived below it.",
    ],
    "lease": ["Rent is due on the first day of the month.", "The deposit is two months' rent."],
    "bees": ["A colony has one queen.", "Workers fan their wings to cool the hive.", "Drones have no sting."],
    "bread": [
        f"Step {step} of the sourdough recipe asks for more flour and patience." for step in range(1, 25)
    ],
}
QUESTION = "When did the beacon start to shine?"


@cache
def _embedded(text: str) -> list[float]:
    vector: list[float] = load_embedder().embed_query(text).tolist()
    return vector


class Counting(Embeddings):
    """The bundled embedder as LangChain embeddings, with a note of every call."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.awaited: list[str] = []
        self.texts = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return [_embedded(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries.append(text)
        return _embedded(text)

    async def aembed_query(self, text: str) -> list[float]:
        self.awaited.append(text)
        return _embedded(text)


def documents() -> list[Document]:
    return [
        Document(
            page_content=text, metadata={"source": name, "start_index": 100 * place, "long": len(texts) > 5}
        )
        for name, texts in SUBJECTS.items()
        for place, text in enumerate(texts)
    ]


def qdrant(embeddings: Embeddings) -> VectorStore:
    client = QdrantClient(":memory:")
    client.create_collection("app", models.VectorParams(size=384, distance=models.Distance.COSINE))
    return QdrantVectorStore(client, "app", embeddings)


def chroma(embeddings: Embeddings) -> VectorStore:
    client = chromadb.EphemeralClient()
    for name in ("app", "app__merged"):
        if name in [collection.name for collection in client.list_collections()]:
            client.delete_collection(name)
    client.create_collection("app", configuration={"hnsw": {"space": "cosine"}})
    return Chroma("app", embeddings, client=client)


def hook_over(store: Any, embeddings: Embeddings, **options: Any) -> MergedStore:
    """What the README tells to write."""
    from merger_plugins.qdrant import QdrantStore

    if isinstance(store, QdrantVectorStore):
        return QdrantStore(store.client, store.collection_name, embedder=embeddings, **options)
    return ChromaStore(store._client, store._collection_name, embedder=embeddings, **options)


APPS = {"qdrant": qdrant, "chroma": chroma}
