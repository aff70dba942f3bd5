"""Back-fill of collections that LangChain and LlamaIndex themselves wrote, go on writing, and delete from."""

import chromadb
import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from qdrant_client import QdrantClient, models

from merger_plugins.chroma import ChromaStore
from merger_plugins.qdrant import QdrantStore
from tests.stores.foreign import LENGTHS, text_of
from tests.stores.support import DIMENSION, HashingEmbedder, informed, unit

TEXTS = {f"d{i}": [text_of(f"d{i}", place) for place in range(n)] for i, n in enumerate(LENGTHS)}


class _Unit(HashingEmbedder, Embeddings):
    """Unit vectors, as most embedding models give them."""

    def _embed(self, text):
        return unit(super()._embed(text))

    def embed_documents(self, texts):
        return super().embed_documents(texts).tolist()

    def embed_query(self, text):
        return super().embed_query(text).tolist()


class _LangChain:
    layout = "LangChain"

    def __init__(self):
        self.ids = {}

    def add(self, texts):
        from langchain_core.documents import Document

        for name, own in texts.items():
            given = [
                Document(page_content=text, metadata={"source": name, "start_index": 100 * place})
                for place, text in enumerate(own)
            ]
            self.ids[name] = self.host.add_documents(given)

    def delete(self, name):
        self.host.delete(self.ids.pop(name))

    def nearest(self, text):
        return [each.page_content for each in self.host.similarity_search(text, 5)]


class _LlamaIndex:
    layout = "LlamaIndex"

    def add(self, texts):
        from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

        self.host.add(
            [
                TextNode(
                    text=text,
                    embedding=_Unit().embed_query(text),
                    metadata={"file_name": f"{name}.txt"},
                    start_char_idx=100 * place,
                    end_char_idx=100 * place + 90,
                    relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
                )
                for name, own in texts.items()
                for place, text in enumerate(own)
            ]
        )

    def delete(self, name):
        self.host.delete(name)

    def nearest(self, text):
        from llama_index.core.vector_stores.types import VectorStoreQuery

        asked = VectorStoreQuery(query_embedding=_Unit().embed_query(text), similarity_top_k=5)
        return [node.get_content() for node in self.host.query(asked).nodes]


class _InQdrant:
    """`options` say how the host is to name the vector and compare."""

    def __init__(self, name="", distance=models.Distance.COSINE):
        super().__init__()
        self.client = QdrantClient(":memory:")
        params = models.VectorParams(size=DIMENSION, distance=distance)
        self.client.create_collection("app", vectors_config={name: params} if name else params)
        self.host = self.opened(name, distance)

    def store(self):
        return QdrantStore(self.client, "app", merger=informed())

    def close(self):
        self.client.close()


class _InChroma:
    def __init__(self, space="l2"):
        super().__init__()
        self.client = chromadb.EphemeralClient()  # all of a process share what is in it
        for collection in self.client.list_collections():
            self.client.delete_collection(collection.name)
        self.host = self.opened(space)

    def store(self):
        return ChromaStore(self.client, "app", merger=informed())

    def close(self):
        for each in self.client.list_collections():
            self.client.delete_collection(each.name)


class LangChainQdrant(_InQdrant, _LangChain):
    package = "langchain_qdrant"

    def opened(self, name, distance):
        from langchain_qdrant import QdrantVectorStore

        return QdrantVectorStore(self.client, "app", _Unit(), vector_name=name, distance=distance)


class LlamaIndexQdrant(_InQdrant, _LlamaIndex):
    package = "llama_index.vector_stores.qdrant"

    def opened(self, name, distance):
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        return QdrantVectorStore("app", client=self.client)


class LangChainChroma(_InChroma, _LangChain):
    package = "langchain_chroma"

    def opened(self, space):
        from langchain_chroma import Chroma

        more = {} if space == "l2" else {"collection_configuration": {"hnsw": {"space": space}}}
        return Chroma("app", _Unit(), client=self.client, **more)


class LlamaIndexChroma(_InChroma, _LlamaIndex):
    package = "llama_index.vector_stores.chroma"

    def opened(self, space):
        from llama_index.vector_stores.chroma import ChromaVectorStore

        made = self.client.create_collection("app", configuration={"hnsw": {"space": space}})
        return ChromaVectorStore(chroma_collection=made)


HOSTS = [
    (LangChainQdrant, {}),
    (LangChainQdrant, {"name": "dense", "distance": models.Distance.DOT}),
    (LlamaIndexQdrant, {}),
    (LangChainChroma, {}),
    (LangChainChroma, {"space": "cosine"}),
    (LlamaIndexChroma, {}),
]


@pytest.fixture(params=HOSTS, ids=[f"{kind.__name__}-{'-'.join(map(str, o.values()))}" for kind, o in HOSTS])
def app(request):
    kind, options = request.param
    pytest.importorskip(kind.package, reason=f"{kind.package} is not installed")
    made = kind(**options)
    yield made
    made.close()


def assert_right(app, texts):
    """Every document has the root and the sections that follow from its texts; there is no other."""
    store = app.store()
    assert {document.id: document.chunks for document in store.documents()} == {
        name: len(own) for name, own in texts.items()
    }
    for name, own in texts.items():
        rolling = informed().rolling()
        rolling.extend(np.array(_Unit().embed_documents(own)), masses=[len(text.split()) for text in own])
        best = store.search(rolling.vector, 1, "document")[0]
        assert (best.document_id, best.score) == (name, pytest.approx(1, abs=1e-5))
        if len(own) < 10:
            continue
        for index, vector in enumerate(rolling.sections(1)):
            best = store.search(vector, 1, "section")[0]
            assert (best.document_id, best.position) == (name, 10 * index)
            assert best.score == pytest.approx(1, abs=1e-5)
            assert best.text == "\n".join(own[10 * index : 10 * index + 10])


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_the_host_writes_and_deletes_and_every_back_fill_is_right(app):
    app.add(TEXTS)
    done = app.store().backfill()
    assert (done.layout, done.documents, done.chunks) == (app.layout, len(LENGTHS), sum(LENGTHS))
    assert done.left_out == {}
    assert done.ties == 0
    assert_right(app, TEXTS)

    more = {f"d{i}": [text_of(f"d{i}", place) for place in range(n)] for i, n in ((90, 3), (91, 44))}
    app.add(more)
    assert app.store().backfill().merged >= 2
    assert_right(app, TEXTS | more)

    app.delete("d5")
    assert app.store().backfill().removed == 1
    assert_right(app, {name: own for name, own in (TEXTS | more).items() if name != "d5"})


def test_chunks_are_found_as_the_host_finds_them(app):
    app.add(TEXTS)
    app.store().backfill()
    for name, place in (("d3", 2), ("d7", 40)):
        text = text_of(name, place)
        hits = app.store().search(np.array(_Unit().embed_query(text)), 5)
        assert hits[0].text == app.nearest(text)[0] == text
        assert hits[0].document_id == name
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert "_node_content" not in hits[0].metadata
        fused = app.store().search(np.array(_Unit().embed_query(text)), 1, "fused")[0]
        assert (fused.text, fused.document_id, fused.position) == (text, name, place)
