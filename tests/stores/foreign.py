"""Collections as other applications write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from qdrant_client import QdrantClient, models

from tests.stores.support import DIMENSION, documents
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
