"""Applications of LangChain and LlamaIndex on COVID-QA, and our adapters in them, for `frameworks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import chromadb
import numpy as np
from langchain_chroma import Chroma
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_qdrant import QdrantVectorStore
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever as LlamaRetriever
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaQdrant
from pydantic import PrivateAttr
from qdrant_client import QdrantClient, models

from benchmarks.common import Floats, cut, embed, read_jsonl, revision
from merger_plugins import load_embedder
from merger_plugins.chroma import ChromaStore
from merger_plugins.langchain import MergerVectorStore
from merger_plugins.llama_index import MergerNodePostprocessor, MergerRetriever
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import FusionWeights, MergedStore

SET = "covidqa"
FOUND = 10
MODES = ("contextual", "fused", "document")
POSTPROCESSED = "own retriever, then context"
_IDS = UUID(int=11)

Answer = list[tuple[str, str, float]]
"""Id, document and score of each hit, best first."""
Ask = Callable[[str], Answer]


class Looked:
    """Vectors by text, with a count of the questions that were asked for."""

    def __init__(self, texts: Sequence[str], vectors: Floats) -> None:
        self.vectors = dict(zip(texts, vectors.tolist(), strict=True))
        self.queries = 0

    def text(self, text: str) -> list[float]:
        """Of a chunk; hosts try other texts out too."""
        if text not in self.vectors:
            self.vectors[text] = load_embedder().embed_query(text).tolist()
        return self.vectors[text]

    def query(self, text: str) -> list[float]:
        self.queries += 1
        return self.text(text)


class LangChainEmbeddings(Embeddings):
    def __init__(self, looked: Looked) -> None:
        self.looked = looked

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.looked.text(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.looked.query(text)


class LlamaEmbedding(BaseEmbedding):
    _looked: Looked = PrivateAttr()

    def __init__(self, looked: Looked) -> None:
        super().__init__(model_name="looked up")
        self._looked = looked

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._looked.text(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._looked.query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._looked.query(query)


@dataclass(frozen=True)
class Corpus:
    """Paragraphs and questions.

    Attributes:
        revision: of the data.
        ids: (p,) of the paragraphs.
        texts: (p,) paragraphs.
        documents: (p,) names of their documents.
        starts: (p,) where each begins in its document.
        questions: (q,).
        gold: (q,) number of the right paragraph.
        looked: vectors of both.
    """

    revision: str
    ids: list[str]
    texts: list[str]
    documents: list[str]
    starts: list[int]
    questions: list[str]
    gold: list[int]
    looked: Looked


def load(data: Path) -> Corpus:
    folder = data / "eval" / SET
    files = [folder / f"{part}.jsonl.gz" for part in ("docs", "queries", "qrels")]
    rows, queries, qrels = (read_jsonl(file) for file in files)
    texts, documents, starts = [], [], []
    first: dict[str, int] = {}
    for row in rows:
        first[row["id"]] = len(texts)
        start = 0
        for paragraph in row["text"].split("\n\n"):
            texts.append(paragraph)
            documents.append(row["id"])
            starts.append(start)
            start += len(paragraph) + 2
    right = {row["query_id"]: first[row["doc_id"]] + row["passage"] for row in qrels}
    questions = [row["text"] for row in queries]
    vectors = embed(f"{SET}-paragraphs", [cut(text, 254) for text in texts])
    asked = embed(f"{SET}-queries", questions)
    looked = Looked([*texts, *questions], np.concatenate([vectors, asked]))
    gold = [right[row["id"]] for row in queries]
    ids = [str(uuid5(_IDS, f"{number}")) for number in range(len(texts))]
    return Corpus(revision(files), ids, texts, documents, starts, questions, gold, looked)


@dataclass(frozen=True)
class Timed:
    """An adapter where all answers are ready, and as much without it.

    Attributes:
        ours: through the adapter.
        frame: the host's object that has its answer ready; with what the library itself would do.
        ready: objects and names of their methods that give at once what they gave before.
    """

    ours: Callable[[], Any]
    frame: Callable[[], Any]
    ready: list[tuple[Any, str]]


@dataclass(frozen=True)
class App:
    """An application's retriever, our retrievers over the same collection, and the library called directly.

    Attributes:
        hook: over the collection.
        before: the host's own.
        after: mode -> ours.
        direct: mode -> the library's answer to a question.
        timed: mode and question -> what is compared for the adapter's overhead.
    """

    hook: MergedStore
    before: Ask
    after: dict[str, Ask]
    direct: dict[str, Ask]
    timed: Callable[[str, str], Timed]


class ReadyLangChain(LangChainRetriever):
    """Embeds the question and gives what it was made with."""

    embeddings: Embeddings
    found: list[Document]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - the host's
    ) -> list[Document]:
        self.embeddings.embed_query(query)
        return self.found


class ReadyLlama(LlamaRetriever):
    """Embeds the question, and makes nodes of these payloads and texts as LlamaIndex's stores do."""

    def __init__(self, embedding: BaseEmbedding, answer: Sequence[tuple[dict[str, Any], str | None]]) -> None:
        self._embedding = embedding
        self._answer = answer
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._embedding.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        nodes = [metadata_dict_to_node(payload, text) for payload, text in self._answer]
        return [NodeWithScore(node=node, score=1.0) for node in nodes]


class NothingLlama(BaseNodePostprocessor):
    """Gives the nodes back."""

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,  # noqa: ARG002 - the host's
    ) -> list[NodeWithScore]:
        return nodes


def directly(store: MergedStore, looked: Looked) -> dict[str, Ask]:
    def ask(mode: str) -> Ask:
        def answer(question: str) -> Answer:
            vector = looked.query(question)
            found = (
                store.passages(vector, FOUND)
                if mode == "document"
                else store.search(vector, FOUND, "fused" if mode == "fused" else "contextual")
            )
            return [(hit.id, hit.document_id or "", hit.score) for hit in found]

        return answer

    return {mode: ask(mode) for mode in MODES}


def langchain_app(corpus: Corpus, engine: str, folder: Path) -> App:
    embeddings = LangChainEmbeddings(corpus.looked)
    documents = [
        Document(page_content=text, metadata={"source": name, "start_index": start})
        for text, name, start in zip(corpus.texts, corpus.documents, corpus.starts, strict=True)
    ]
    if engine == "qdrant":
        client = QdrantClient(":memory:")
        client.create_collection("app", models.VectorParams(size=384, distance=models.Distance.COSINE))
        plain: Any = QdrantVectorStore(client, "app", embeddings)
        hook: MergedStore = QdrantStore(client, "app", embedder=embeddings)
    else:
        chroma = chromadb.PersistentClient(str(folder / "langchain"))
        plain = Chroma("app", embeddings, client=chroma)
        hook = ChromaStore(chroma, "app", embedder=embeddings)
    for start in range(0, len(documents), 1_000):
        plain.add_documents(documents[start : start + 1_000], ids=corpus.ids[start : start + 1_000])
    hook.backfill(contextual="companion")
    wrapped = MergerVectorStore(plain, hook)
    own = plain.as_retriever(search_kwargs={"k": FOUND})

    def listed(found: Sequence[Document]) -> Answer:
        return [
            (str(d.id or d.metadata.get("_id")), d.metadata["source"], d.metadata.get("score", 0.0))
            for d in found
        ]

    def after(mode: str) -> Ask:
        retriever = wrapped.as_retriever(search_type=mode, search_kwargs={"k": FOUND})

        return lambda question: listed(retriever.invoke(question))

    ours = {mode: after(mode) for mode in MODES}

    def timed(mode: str, question: str) -> Timed:
        has_it = ReadyLangChain(embeddings=embeddings, found=own.invoke(question))
        return Timed(
            lambda: ours[mode](question),
            lambda: listed(has_it.invoke(question)),
            [(hook, "passages" if mode == "document" else "search")],
        )

    return App(
        hook, lambda question: listed(own.invoke(question)), ours, directly(hook, corpus.looked), timed
    )


def llama_app(corpus: Corpus, engine: str, folder: Path) -> App:
    embedding = LlamaEmbedding(corpus.looked)
    nodes = [
        TextNode(
            id_=own,
            text=text,
            start_char_idx=start,
            end_char_idx=start + len(text),
            embedding=corpus.looked.vectors[text],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
        )
        for own, text, name, start in zip(
            corpus.ids, corpus.texts, corpus.documents, corpus.starts, strict=True
        )
    ]
    if engine == "qdrant":
        client = QdrantClient(":memory:")
        vector_store: Any = LlamaQdrant("app", client=client)
    else:
        chroma = chromadb.PersistentClient(str(folder / "llama_index"))
        collection = chroma.get_or_create_collection("app", configuration={"hnsw": {"space": "cosine"}})
        vector_store = ChromaVectorStore(chroma_collection=collection)
    for start in range(0, len(nodes), 1_000):
        vector_store.add(nodes[start : start + 1_000])
    hook: MergedStore = (
        QdrantStore(client, "app", embedder=embedding)
        if engine == "qdrant"
        else ChromaStore(chroma, "app", embedder=embedding)
    )
    hook.backfill(contextual="companion")
    context = StorageContext.from_defaults(vector_store=vector_store)
    index = VectorStoreIndex.from_vector_store(vector_store, embedding, storage_context=context)
    own = index.as_retriever(similarity_top_k=FOUND)
    post = MergerNodePostprocessor.from_index(index, hook=hook)

    def listed(found: Sequence[Any]) -> Answer:
        return [(n.node.node_id, n.node.ref_doc_id or "", float(n.score or 0.0)) for n in found]

    def after(mode: str) -> Ask:
        retriever = MergerRetriever(hook, mode=mode, similarity_top_k=FOUND, embed_model=embedding)
        return lambda question: listed(retriever.retrieve(question))

    def postprocessed(question: str) -> Answer:
        bundle = QueryBundle(question)
        return listed(post.postprocess_nodes(own.retrieve(bundle), bundle))

    def answered(ids: list[str]) -> list[tuple[dict[str, Any], str | None]]:
        """What the database says of points beside their vectors."""
        if engine == "qdrant":
            return [(point.payload or {}, None) for point in client.retrieve("app", ids)]
        answer = collection.get(ids=ids)
        return list(zip(answer["metadatas"], answer["documents"], strict=True))

    def rescored(found: Sequence[NodeWithScore], query: Sequence[float]) -> Answer:
        """As the postprocessor, without it."""
        owners = {node.node_id: node.node.ref_doc_id or "" for node in found}
        if engine == "qdrant":
            points = client.retrieve("app", list(owners), with_payload=False, with_vectors=True)
            rows = {str(point.id): point.vector for point in points}
            rows = {name: row[""] if isinstance(row, dict) else row for name, row in rows.items()}
        else:
            answer = collection.get(ids=list(owners), include=["embeddings"])
            rows = dict(zip(answer["ids"], answer["embeddings"], strict=True))
        vectors, unit = np.array(list(rows.values()), np.float32), np.array(query, np.float32)
        cosines = vectors @ (unit / np.linalg.norm(unit)) / np.linalg.norm(vectors, axis=1)
        names = sorted(set(owners.values()))
        roots = hook.search(unit, len(names), "document", documents=names)
        score = {hit.document_id: hit.score for hit in roots}
        weights = FusionWeights()
        pairs = zip(rows, cosines.tolist(), strict=True)
        scores = {name: weights.chunk * own + weights.root * score[owners[name]] for name, own in pairs}
        return sorted(((name, owners[name], scores[name]) for name in owners), key=lambda hit: -hit[2])

    def directly_rescored(question: str) -> Answer:
        bundle = QueryBundle(question)
        found = own.retrieve(bundle)
        return rescored(found, bundle.embedding or [])

    ours = {**{mode: after(mode) for mode in MODES}, POSTPROCESSED: postprocessed}

    def timed(mode: str, question: str) -> Timed:
        bundle = QueryBundle(question)
        found = own.retrieve(bundle)
        if mode != POSTPROCESSED:
            has_it = ReadyLlama(embedding, answered([node.node_id for node in found]))
            return Timed(
                lambda: ours[mode](question),
                lambda: listed(has_it.retrieve(question)),
                [(hook, "passages" if mode == "document" else "search")],
            )
        nothing, query = NothingLlama(), bundle.embedding or []
        return Timed(
            lambda: listed(post.postprocess_nodes(found, bundle)),
            lambda: (rescored(found, query), listed(nothing.postprocess_nodes(found, bundle))),
            [(hook, "search"), (client, "retrieve") if engine == "qdrant" else (collection, "get")],
        )

    return App(
        hook,
        lambda question: listed(own.retrieve(question)),
        ours,
        {**directly(hook, corpus.looked), POSTPROCESSED: directly_rescored},
        timed,
    )
