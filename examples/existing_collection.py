"""A collection that LangChain wrote long ago gets section and root vectors, and keeps every point as it is.

Fifteen documents in chunks, written by langchain-qdrant into a folder; then a back-fill, searches on three
levels, another back-fill after the application added a document, and how to undo it. Needs langchain-qdrant,
merger-plugins[cpu,langchain,qdrant]; runs offline, in a temporary folder, within a minute.
"""

import json
import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

import merger_plugins
from merger_plugins import load_embedder
from merger_plugins.chunking import SentenceChunker
from merger_plugins.qdrant import QdrantStore

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


class AppEmbeddings(Embeddings):
    """What the application embeds with."""

    def __init__(self) -> None:
        self.model = load_embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.model.embed_query(text).tolist()


def chunks_of(path: Path) -> list[Document]:
    """As a splitter with add_start_index=True makes them."""
    text = path.read_text(encoding="utf-8")
    return [
        Document(page_content=chunk.text, metadata={"source": path.name, "start_index": chunk.start})
        for chunk in SentenceChunker(count_tokens=load_embedder().count_tokens).split(text)
    ]


def points(folder: str) -> list[tuple[object, object, object]]:
    client = QdrantClient(path=folder)
    records, _ = client.scroll("app", limit=100_000, with_vectors=True)
    client.close()
    return [(record.id, record.payload, record.vector) for record in records]


def main() -> None:
    embeddings = AppEmbeddings()
    *paths, last = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]

    with tempfile.TemporaryDirectory() as folder:
        # The application, some time ago.
        old = [chunk for path in paths for chunk in chunks_of(path)]
        app = QdrantVectorStore.from_documents(old, embeddings, path=folder, collection_name="app")
        app.client.close()
        before = points(folder)

        with QdrantStore(folder, "app", embedder=embeddings) as store:
            done = store.backfill()
            print(
                f"{done.layout} layout: {done.chunks} chunks in {done.documents} documents, grouped by "
                f"{done.group_by}, ordered by {', '.join(done.order_by)}; {done.merged} merged."
            )
            known = [q for q in asked if q["document"] != last.name]
            for level in ("chunk", "document", "fused"):
                found = [store.search(q["question"], 1, level)[0].document_id == q["document"] for q in known]
                print(f"right document first by {level}: {sum(found)} of {len(known)} questions")
        print(f"The application's points are as they were: {points(folder) == before}")

        # The application goes on writing; another back-fill does what is new.
        app = QdrantVectorStore.from_existing_collection("app", embeddings, path=folder)
        app.add_documents(chunks_of(last))
        app.client.close()
        with QdrantStore(folder, "app", embedder=embeddings) as store:
            done = store.backfill()
            print(f"After one more document: {done.merged} of {done.documents} merged.")

        # To undo it, drop the companion.
        client = QdrantClient(path=folder)
        client.delete_collection("app__merged")
        print(f"Left: {[collection.name for collection in client.get_collections().collections]}")
        client.close()


if __name__ == "__main__":
    main()
