"""Databases for all tests of the stores."""

from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient

from tests.stores.contract.hosts import ChromaServer


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    pytest.importorskip("chromadb")
    server = ChromaServer(tmp_path_factory.mktemp("chroma-server"))
    yield server
    server.stop()


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    """An empty Qdrant in memory."""
    client = QdrantClient(":memory:")
    yield client
    client.close()
