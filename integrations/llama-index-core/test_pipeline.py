"""`MergerTransform` in LlamaIndex's ingestion pipeline: its cache, its worker processes, its updates."""

from typing import Any

import numpy as np
import pytest
from llama_index.core import Document
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from merger_plugins.llama_index import MergerTransform
from tests.llama_index.apps import WordModel, calibrated, documents, level, splitter


class Counting(MergerTransform):
    def __call__(self, nodes: Any, **kwargs: Any) -> Any:
        CALLS.append(len(nodes))
        return super().__call__(nodes, **kwargs)


CALLS: list[int] = []


def test_the_pipelines_cache_answers_for_it_until_a_setting_changes() -> None:
    cache = IngestionCache()

    def run(**settings: Any) -> list[Any]:
        steps = [splitter(), WordModel(), Counting(**settings)]
        return list(IngestionPipeline(transformations=steps, cache=cache).run(documents=documents()))

    CALLS.clear()
    first = run()
    assert [node.to_dict() for node in run()] == [node.to_dict() for node in first]
    assert len(CALLS) == 1
    other = run(merger=calibrated())
    assert len(CALLS) == 2
    assert level(other, "document")[0].embedding != level(first, "document")[0].embedding
    run(space="another model")
    assert len(CALLS) == 3


def test_with_two_workers_the_same() -> None:
    split = SentenceSplitter(chunk_size=60, chunk_overlap=30)  # which loses another tokenizer on its way
    steps = [split, WordModel(), MergerTransform(merger=calibrated())]

    def run(**settings: Any) -> dict[str, Any]:
        nodes = IngestionPipeline(transformations=steps, disable_cache=True).run(
            documents=documents(), **settings
        )
        return {node.node_id: node.embedding for node in nodes if "merger_level" in node.metadata}

    alone = run()
    together = run(num_workers=2)
    assert together.keys() == alone.keys()
    assert len(alone) > 4
    for name, embedding in alone.items():
        np.testing.assert_allclose(together[name], embedding, atol=1e-6)


@pytest.mark.parametrize("kind", ["simple", "qdrant"])
def test_an_updated_document_leaves_nothing_behind(kind: str) -> None:
    client = QdrantClient(":memory:")
    store = QdrantVectorStore("docs", client=client) if kind == "qdrant" else SimpleVectorStore()
    pipeline = IngestionPipeline(
        transformations=[splitter(), WordModel(), MergerTransform()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
    )
    pipeline.run(documents=documents())

    def stored() -> dict[str, str]:
        if kind == "simple":
            return dict(store.data.text_id_to_ref_doc_id)
        points, _ = client.scroll("docs", limit=10_000)
        return {str(point.id): point.payload["ref_doc_id"] for point in points}

    before = stored()
    changed = Document(text="The reef tower fell.", id_="tower", metadata={"topic": "tower"})
    made = pipeline.run(documents=[changed, *documents()[1:]])
    after = stored()
    others = {name for name, document in before.items() if document != "tower"}
    assert {name for name, document in after.items() if document != "tower"} == others
    assert {name for name, document in after.items() if document == "tower"} == {
        node.node_id for node in made
    }
    assert len(made) == 2, "one chunk, and the document"
