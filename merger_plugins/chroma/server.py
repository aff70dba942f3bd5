"""Clients of a Chroma server that wait for its answers, but not for ever, as Chroma's own do."""

from __future__ import annotations

from typing import Any

import chromadb
import httpx
from chromadb.api import AsyncClientAPI, AsyncServerAPI, ClientAPI
from chromadb.api.async_client import AsyncClient
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings

TIMEOUT = 60.0
"""Seconds without an answer after which a request fails."""

_URLS = ("http://", "https://")


def is_url(place: str) -> bool:
    """Whether a location is that of a server."""
    return place.startswith(_URLS)


def server_place(settings: Settings) -> str | None:
    """How messages name the server of a client; None where it has none."""
    host, port = settings.chroma_server_host, settings.chroma_server_http_port
    return host if host is None or is_url(host) else f"{host}:{port}"


def connected(url: str) -> ClientAPI:
    """A client for threads.

    Raises:
        httpx.TransportError: the server does not answer.
        ValueError: it answers, and not as Chroma does.
    """
    url = url.rstrip("/")
    httpx.get(f"{url}/api/v2/heartbeat", timeout=TIMEOUT)  # making the client would wait for ever
    client = chromadb.HttpClient(url, ssl=url.startswith(_URLS[1]))
    server: Any = client
    server._server._session.timeout = TIMEOUT
    return client


async def connected_coroutines(url: str) -> AsyncClientAPI:
    """A client of coroutines for the event loop that runs; errors as `connected`."""
    url = url.rstrip("/")
    settings = Settings(
        chroma_api_impl="chromadb.api.async_fastapi.AsyncFastAPI",
        chroma_server_host=url,
        chroma_server_http_port=8000,  # not looked at where the host is a URL
        chroma_server_ssl_enabled=url.startswith(_URLS[1]),
        chroma_server_ssl_verify=True,  # Chroma's client of coroutines does not by default
    )
    return await _CoroutineClient.create(settings=settings)


async def disconnected(client: AsyncClientAPI) -> None:
    """Close a client that `connected_coroutines` made."""
    assert isinstance(client, _CoroutineClient)
    await client.close()


class _CoroutineClient(AsyncClient):
    """With connections of its own: Chroma shares them, headers included, between all clients of a loop."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings=settings)
        system: Any = self._system
        self._api = system.instance(AsyncServerAPI)
        self._api._clients = {}
        self._api._get_client().timeout = TIMEOUT

    async def close(self) -> None:
        """Close its connections and let go of what Chroma keeps of each client."""
        system, systems = self._system, SharedSystemClient._identifier_to_system
        await self._api._cleanup()
        for identifier in [each for each, known in systems.items() if known is system]:
            del systems[identifier]
