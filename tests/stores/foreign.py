"""Collections as other applications write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from merger_plugins import SequenceMerger
from merger_plugins.stores import MergedStore
from merger_plugins.stores.backend import Backend
from tests.stores.support import DIMENSION, documents, informed, stored, unit
from tests.strategies import Array

LENGTHS = (1, 4, 9, 10, 11, 23, 35, 64)
_SPACE = UUID(int=7)


def corpus(seed: int = 3, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Array]:
    return documents(seed, *lengths)


def point_id(name: str, place: int) -> str:
    """Says nothing of the document, and sorts at random."""
    return str(uuid5(_SPACE, f"{name}/{place}"))


def text_of(name: str, place: int) -> str:
    return f"{name} says the {place}th thing " + "and more " * (place % 3)


def mass_of(name: str, place: int) -> float:
    return float(len(text_of(name, place).split()))


def langchain(name: str, place: int) -> dict[str, Any]:
    return {
        "page_content": text_of(name, place),
        "metadata": {"source": name, "start_index": 100 * place, "even": int(name[1:]) % 2 == 0},
    }


def llama_index(name: str, place: int) -> dict[str, Any]:
    """What `llama_index.core.vector_stores.utils.node_to_metadata_dict` makes of a node."""
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
    from llama_index.core.vector_stores.utils import node_to_metadata_dict

    node = TextNode(
        id_=point_id(name, place),
        text=text_of(name, place),
        metadata={"file_name": f"{name}.txt", "even": str(int(name[1:]) % 2 == 0)},
        start_char_idx=100 * place,
        end_char_idx=100 * place + 90,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
    )
    return node_to_metadata_dict(node, remove_text=False, flat_metadata=False)


def by_hand(name: str, place: int) -> dict[str, Any]:
    return {"text": text_of(name, place), "book": int(name[1:]), "at": str(place), "even": int(name[1:]) % 2}


FORMS = {"langchain": langchain, "llama_index": llama_index, "by_hand": by_hand}
VECTOR_NAMES = {"langchain": "", "llama_index": "text-dense", "by_hand": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "langchain": {},
    "llama_index": {},
    "by_hand": {"group_by": "book", "order_by": "at"},
}


def create(
    client: QdrantClient,
    form: str = "langchain",
    collection: str = "app",
    distance: models.Distance = models.Distance.COSINE,
    **more: Any,
) -> None:
    params = models.VectorParams(size=DIMENSION, distance=distance)
    name = VECTOR_NAMES[form]
    client.create_collection(collection, vectors_config=params if name is None else {name: params, **more})


def put(
    client: QdrantClient,
    texts: Mapping[str, Array],
    form: str = "langchain",
    collection: str = "app",
    change: Any = None,
) -> None:
    """Write every chunk, in the order of its id."""
    name_of_vector = VECTOR_NAMES[form]
    points = []
    for name, vectors in texts.items():
        for place, vector in enumerate(vectors):
            payload = json.loads(json.dumps(FORMS[form](name, place)))
            if change is not None:
                payload = change(payload, name, place)
            listed = np.asarray(vector, np.float32).tolist()
            points.append(
                models.PointStruct(
                    id=point_id(name, place),
                    vector=listed if name_of_vector is None else {name_of_vector: listed},
                    payload=payload,
                )
            )
    client.upsert(collection, sorted(points, key=lambda point: point.id))


def document_name(form: str, name: str) -> str:
    return name[1:] if form == "by_hand" else name


class QdrantApp:
    """Collections as LangChain writes them into Qdrant."""

    distances = (models.Distance.DOT, models.Distance.EUCLID)
    cosine = models.Distance.COSINE
    other = models.Distance.MANHATTAN

    def __init__(self, client: Any) -> None:
        self.client = client

    def write(self, name: str, distance: Any, texts: Mapping[str, Array]) -> None:
        if not self.client.collection_exists(name):
            create(self.client, collection=name, distance=distance)
        put(self.client, texts, collection=name)

    def store(self, name: str) -> MergedStore:
        from merger_plugins.qdrant import QdrantStore

        return QdrantStore(self.client, name, merger=informed())

    def exists(self, name: str) -> bool:
        exists: bool = self.client.collection_exists(name)
        return exists


class ChromaApp:
    """Collections as LangChain writes them into Chroma, by l2 unless somebody says otherwise."""

    distances = ("l2", "ip")
    cosine = "cosine"

    def __init__(self, client: Any) -> None:
        self.client = client

    def write(self, name: str, distance: Any, texts: Mapping[str, Array]) -> None:
        made = self.client.get_or_create_collection(name, configuration={"hnsw": {"space": distance}})
        for document, vectors in texts.items():
            payloads = [json.loads(json.dumps(langchain(document, i))) for i in range(len(vectors))]
            made.upsert(
                ids=[point_id(document, i) for i in range(len(vectors))],
                embeddings=np.asarray(vectors, np.float32),
                documents=[payload["page_content"] for payload in payloads],
                metadatas=[payload["metadata"] for payload in payloads],
            )

    def store(self, name: str) -> MergedStore:
        from merger_plugins.chroma import ChromaStore

        return ChromaStore(self.client, name, merger=informed())

    def exists(self, name: str) -> bool:
        return name in [each.name for each in self.client.list_collections()]


def private_chroma() -> Any:
    """Chroma in memory, in a database of its own: all clients of a process share what is in one."""
    chromadb = pytest.importorskip("chromadb")
    name = f"test-{uuid4().hex}"
    chromadb.AdminClient(chromadb.Settings(is_persistent=False)).create_database(name)
    return chromadb.EphemeralClient(database=name)


@contextmanager
def hosted(kind: str, folder: Path) -> Iterator[QdrantApp | ChromaApp]:
    """An application on Qdrant's embedded client, on its real engine (``"edge"``) or on Chroma."""
    if kind == "chroma":
        yield ChromaApp(private_chroma())
        return
    if kind == "edge":
        pytest.importorskip("qdrant_edge")
        from tests.stores.edge import EdgeClient

        client: QdrantClient = EdgeClient(folder / "edge")
    else:
        client = QdrantClient(":memory:")
    yield QdrantApp(client)
    client.close()


def assert_merged(backend: Backend, texts: Mapping[str, Array], merger: SequenceMerger) -> None:
    """The companion holds what the merger makes of these documents of LangChain's, and nothing more."""
    expected = {}
    for name, vectors in texts.items():
        rolling = merger.rolling()
        rolling.extend(unit(vectors), masses=[mass_of(name, place) for place in range(len(vectors))])
        ids = [point_id(name, place) for place in range(len(vectors))]
        expected[name, "root", 0] = (rolling.vector, ids if len(vectors) < 10 else None)
        for index, vector in enumerate(rolling.sections(1) if len(vectors) >= 10 else []):
            expected[name, "section", 10 * index] = (vector, ids[10 * index : 10 * index + 10])
    points = [p for p in stored(backend, "", "merged").values() if p.payload["kind"] in ("root", "section")]
    found = {(p.payload["document_id"], p.payload["kind"], p.payload["position"]): p for p in points}
    assert len(found) == len(points)
    assert found.keys() == expected.keys()
    for key, (vector, ids) in expected.items():
        np.testing.assert_allclose(found[key].vector, vector, atol=1e-5)
        assert found[key].payload.get("chunks") == ids
        assert found[key].payload["fingerprint"] == merger.fingerprint
