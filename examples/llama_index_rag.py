"""A LlamaIndex RAG application before and after: three lines, and what its retriever finds.

The application: sixteen documents, split by LlamaIndex, in Qdrant through its vector store. After: the same
collection, back-filled with merged vectors, and a retriever that compares chunks in their context.
Needs merger-plugins[cpu,llama-index,qdrant] and llama-index-vector-stores-qdrant; runs offline, in memory,
within a minute.

      index = VectorStoreIndex.from_documents(documents, storage_context=storage, embed_model=embed_model)
    + hook = QdrantStore(client, "app", embedder=embed_model)
    + hook.backfill(contextual="companion")
    - retriever = index.as_retriever(similarity_top_k=4)
    + retriever = MergerRetriever(hook, mode="contextual", similarity_top_k=4)
"""

import json
from pathlib import Path

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

import merger_plugins
from merger_plugins.embedders import load_embedder
from merger_plugins.llama_index import MergerRetriever
from merger_plugins.qdrant import QdrantStore

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"
MODEL = load_embedder()


class AppEmbedding(BaseEmbedding):
    """What the application embeds with."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return MODEL.embed_documents(texts).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return MODEL.embed_query(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def place(found: list[NodeWithScore], right: str) -> int | None:
    """Where the first node of the right document is, from 1."""
    names = [node.node.ref_doc_id for node in found]
    return names.index(right) + 1 if right in names else None


def answers(found: list[NodeWithScore], passage: str) -> bool:
    """Whether the words that answer are in one of the nodes."""
    return any(" ".join(passage.split()) in " ".join(node.text.split()) for node in found)


def main() -> None:
    embed_model = AppEmbedding(embed_batch_size=256)
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    documents = [Document(text=path.read_text(encoding="utf-8"), id_=path.name) for path in paths]
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]

    # Before.
    client = QdrantClient(":memory:")
    storage = StorageContext.from_defaults(vector_store=QdrantVectorStore("app", client=client))
    index = VectorStoreIndex.from_documents(
        documents,
        storage_context=storage,
        embed_model=embed_model,
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0)],
    )
    before = index.as_retriever(similarity_top_k=4)

    # After.
    hook = QdrantStore(client, "app", embedder=embed_model)
    done = hook.backfill(contextual="companion")
    after = MergerRetriever(hook, mode="contextual", similarity_top_k=4)

    print(f"{done.chunks} nodes of {done.documents} documents, {len(asked)} questions, 4 nodes each.\n")
    places: dict[str, list[int | None]] = {"before": [], "after": []}
    answered = {"before": 0, "after": 0}
    for question in asked:
        found = {name: r.retrieve(question["question"]) for name, r in (("before", before), ("after", after))}
        for name, nodes in found.items():
            places[name].append(place(nodes, question["document"]))
            answered[name] += answers(nodes, question["passage"])
        if places["before"][-1] != places["after"][-1]:
            print(f"{question['question']}\n  right: {question['document']}")
            for name, nodes in found.items():
                print(f"  {name:6}  {', '.join(node.node.ref_doc_id or '' for node in nodes)}")
            print()
    for name, ranks in places.items():
        mean = sum(1 / rank for rank in ranks if rank) / len(ranks)
        print(
            f"{name:6}  right document first: {ranks.count(1)}, among the four: "
            f"{len(ranks) - ranks.count(None)}, mean of 1/place {mean:.3f}; "
            f"the words that answer among the four: {answered[name]}"
        )


if __name__ == "__main__":
    main()
