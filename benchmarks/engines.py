"""The databases that `benchmarks.backfill` fills, each with a collection as LangChain writes it."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merger_plugins.chroma import ChromaBackend
from merger_plugins.qdrant import QdrantBackend
from merger_plugins.stores.backend import Backend, Point, Shelf

COLLECTION = "app"
COMPANION = f"{COLLECTION}__merged"
DIMENSION = 384
_LOT = 2_000


@dataclass(frozen=True, eq=False)
class Chunk:
    """One chunk of the application's, its vector of unit length."""

    id: str
    text: str
    metadata: dict[str, Any]
    vector: NDArray[np.float32]


class Timed(Backend):
    """Knows how long the database takes to write."""

    spent: dict[str, float]

    def write(self, shelf: Shelf, points: Sequence[Point], *, below: int | None = None) -> None:
        began, worked = time.perf_counter(), time.process_time()
        super().write(shelf, points, below=below)  # type: ignore[safe-super]
        self.spent["points_written"] += len(points)
        self.spent["writing_s"] += time.perf_counter() - began
        self.spent["writing_cpu_s"] += time.process_time() - worked


class TimedQdrant(Timed, QdrantBackend):
    """Qdrant's."""


class TimedChroma(Timed, ChromaBackend):
    """Chroma's."""


class Engine(ABC):
    """One database in a folder.

    Attributes:
        packages: whose versions a result names.
        suffix: of the name of its result file.
    """

    packages: tuple[str, ...] = ("qdrant-client",)
    suffix: str

    @contextmanager
    def running(self, folder: Path) -> Iterator[str]:  # a server starts here
        """Where it can be reached meanwhile: the folder itself, or the URL of a server over it."""
        yield str(folder)

    @abstractmethod
    def make(self, place: str, chunks: Iterable[Chunk]) -> None:
        """Write the collection."""

    @abstractmethod
    def backend(self, place: str) -> Timed:
        """Opened, with the collection in it."""

    @abstractmethod
    def forget_merged(self, place: str) -> None:
        """Remove the companion, so that the next back-fill is the first one."""


class Local(Engine):
    """The embedded folder of Qdrant's client, which holds every point in memory."""

    suffix = "-local"

    def connect(self, place: str) -> Any:
        from qdrant_client import QdrantClient

        return QdrantClient(path=place)

    def make(self, place: str, chunks: Iterable[Chunk]) -> None:
        from qdrant_client import models

        client = self.connect(place)
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config={"": params})
        self._prepare(client)
        for lot in _in_lots(chunks):
            points = [
                models.PointStruct.model_construct(
                    id=chunk.id,
                    vector={"": chunk.vector.tolist()},
                    payload={"page_content": chunk.text, "metadata": chunk.metadata},
                )
                for chunk in lot
            ]
            client.upsert(COLLECTION, points)
        client.close()

    def _prepare(self, client: Any) -> None:  # making is not measured
        client._client.collections[COLLECTION].storage.storage.execute("PRAGMA synchronous = OFF")

    def backend(self, place: str) -> Timed:
        backend = TimedQdrant(self.connect(place), COLLECTION)
        backend.layout()
        return backend

    def forget_merged(self, place: str) -> None:
        client = self.connect(place)
        if client.collection_exists(COMPANION):
            client.delete_collection(COMPANION)
        client.close()


class Edge(Local):
    """The real Qdrant engine in the process."""

    suffix = ""

    def connect(self, place: str) -> Any:
        import qdrant_edge as edge
        from qdrant_client import models

        from tests.stores.edge import EdgeClient

        folder = Path(place)
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client = EdgeClient(folder)
        for path in sorted(folder.glob("*")):
            client.shards[path.name] = edge.EdgeShard.load(str(path))
            client.configs[path.name] = {"": params} if path.name == COLLECTION else params
        return client

    def _prepare(self, client: Any) -> None:
        pass

    def forget_merged(self, place: str) -> None:
        super().forget_merged(place)
        shutil.rmtree(Path(place) / COMPANION, ignore_errors=True)


class ChromaServer(Engine):
    """`chroma run` in a process of its own, on loopback; langchain-chroma writes, by its default l2."""

    packages = ("chromadb", "langchain-chroma")
    suffix = "-chroma-server"

    @contextmanager
    def running(self, folder: Path) -> Iterator[str]:
        from tests.stores.contract.hosts import ChromaServer as Server

        folder.mkdir(exist_ok=True)
        server = Server(folder)
        try:
            yield server.url
        finally:
            server.stop()

    def make(self, place: str, chunks: Iterable[Chunk]) -> None:
        from langchain_chroma import Chroma

        given = _Given()
        store = Chroma(COLLECTION, embedding_function=given, client=_http(place))
        for lot in _in_lots(chunks):
            given.vectors = [chunk.vector.tolist() for chunk in lot]
            store.add_texts(
                [chunk.text for chunk in lot],
                metadatas=[chunk.metadata for chunk in lot],
                ids=[chunk.id for chunk in lot],
            )

    def backend(self, place: str) -> Timed:
        return TimedChroma(place, COLLECTION)

    def forget_merged(self, place: str) -> None:
        client = _http(place)
        for collection in client.list_collections():
            if collection.name != COLLECTION:
                client.delete_collection(collection.name)


class _Given:
    """Stands in for an embedding model: the vectors are there already."""

    vectors: list[list[float]]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:  # noqa: ARG002
        return self.vectors

    def embed_query(self, text: str) -> list[float]:  # noqa: ARG002
        return self.vectors[0]


def _http(url: str) -> Any:
    import chromadb

    host, _, port = url.removeprefix("http://").partition(":")
    return chromadb.HttpClient(host=host, port=int(port))


def _in_lots(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    iterator = iter(chunks)
    while lot := list(islice(iterator, _LOT)):
        yield lot


ENGINES: dict[str, Engine] = {"edge": Edge(), "local": Local(), "chroma-server": ChromaServer()}
