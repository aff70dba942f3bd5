"""COVID-QA through the objects of LangChain and LlamaIndex, before and after: nDCG@10, equality, overhead.

Run ``python -m benchmarks.frameworks --data FOLDER``. The application stores each paragraph as one chunk,
with langchain-qdrant, langchain-chroma, or LlamaIndex's stores for both; its retriever finds 10 passages,
whose documents, each once, are the documents found. Afterwards the collection is back-filled, with contextual
vectors in the companion, and our retrievers are asked. Each answer is compared with the library's own.

An adapter's overhead is what its retriever takes where the library answers at once, with what it answered
before, less what the host takes for a retriever that embeds the question and has its answer ready; it stands
beside the time of the host's own retriever, measured in turns. Every sixth question is asked. Embeddings
are kept in .cache/ and looked up by text, and every look-up is counted. Writes
benchmarks/results/frameworks.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaQdrant
from pydantic import PrivateAttr
from qdrant_client import QdrantClient, models

from benchmarks.common import DEFAULT_DATA, Floats, cut, embed, read_jsonl, revision, write_result
from merger_plugins import load_embedder
from merger_plugins.chroma import ChromaStore
from merger_plugins.langchain import MergerVectorStore
from merger_plugins.llama_index import MergerNodePostprocessor, MergerRetriever
from merger_plugins.qdrant import QdrantStore
from merger_plugins.stores import MergedStore

SET = "covidqa"
FOUND = 10
TIMED = 60
EVERY = 6
ROUNDS = 3
MODES = ("contextual", "fused", "document")
SAME = 1e-6
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


# -- applications ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class App:
    """An application's retriever, our retrievers over the same collection, and the library called directly.

    Attributes:
        hook: over the collection.
        before: the host's own.
        after: mode -> ours.
        direct: mode -> the library's answer to a question.
        ready: a question -> a retriever of the host that has the host's answer to it ready.
    """

    hook: MergedStore
    before: Ask
    after: dict[str, Ask]
    direct: dict[str, Ask]
    ready: Callable[[str], Ask]


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
    """Embeds the question and gives what it was made with."""

    def __init__(self, embedding: BaseEmbedding, found: list[NodeWithScore]) -> None:
        self._embedding = embedding
        self._found = found
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._embedding.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        return self._found


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

    def ready(question: str) -> Ask:
        retriever = ReadyLangChain(embeddings=embeddings, found=own.invoke(question))
        return lambda question: listed(retriever.invoke(question))

    def after(mode: str) -> Ask:
        retriever = wrapped.as_retriever(search_type=mode, search_kwargs={"k": FOUND})

        return lambda question: listed(retriever.invoke(question))

    return App(
        hook,
        lambda question: listed(own.invoke(question)),
        {mode: after(mode) for mode in MODES},
        directly(hook, corpus.looked),
        ready,
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

    def ready(question: str) -> Ask:
        retriever = ReadyLlama(embedding, own.retrieve(question))
        return lambda question: listed(retriever.retrieve(question))

    def after(mode: str) -> Ask:
        retriever = MergerRetriever(hook, mode=mode, similarity_top_k=FOUND, embed_model=embedding)
        return lambda question: listed(retriever.retrieve(question))

    def postprocessed(question: str) -> Answer:
        bundle = QueryBundle(question)
        return listed(post.postprocess_nodes(own.retrieve(bundle), bundle))

    ours = {mode: after(mode) for mode in MODES}
    return App(
        hook,
        lambda question: listed(own.retrieve(question)),
        {**ours, "own retriever, then context": postprocessed},
        directly(hook, corpus.looked),
        ready,
    )


# -- measuring ---------------------------------------------------------------------------------------------


def ndcg10(rank: int | None) -> float:
    return 0.0 if rank is None or rank >= 10 else float(1 / np.log2(rank + 2))


def quality(corpus: Corpus, answers: Sequence[Answer]) -> dict[str, float]:
    """nDCG@10 of the right paragraph, and of the right document."""
    passages, documents = [], []
    for gold, answer in zip(corpus.gold, answers, strict=True):
        ids = [point_id for point_id, _, _ in answer]
        names = list(dict.fromkeys(name for _, name, _ in answer))
        right, where = corpus.ids[gold], corpus.documents[gold]
        passages.append(ndcg10(ids.index(right) if right in ids else None))
        documents.append(ndcg10(names.index(where) if where in names else None))
    return {"passages": round(float(np.mean(passages)), 4), "documents": round(float(np.mean(documents)), 4)}


def asked(corpus: Corpus, ask: Ask) -> tuple[list[Answer], float]:
    """The answers to all questions, and how often each was embedded."""
    before = corpus.looked.queries
    answers = [ask(question) for question in corpus.questions]
    return answers, (corpus.looked.queries - before) / len(corpus.questions)


def difference(ours: Sequence[Answer], direct: Sequence[Answer]) -> dict[str, Any]:
    """Whether the adapter gives the same points in the same order, and how far scores differ at the most."""
    same = all([a[0] for a in x] == [b[0] for b in y] for x, y in zip(ours, direct, strict=True))
    pairs = [(a, b) for x, y in zip(ours, direct, strict=True) for a, b in zip(x, y, strict=False)]
    largest = max((abs(a[2] - b[2]) for a, b in pairs), default=0.0)
    return {"same points": same, "largest difference of scores": float(f"{largest:.2g}")}


def seconds(app: App, mode: str, questions: Sequence[str]) -> tuple[float, float, float]:
    """Seconds a question, the least of some rounds.

    Of the host's own retriever; of ours, where the library's answer is ready; of the host's, where all is.
    """
    method = "passages" if mode == "document" else "search"
    library = getattr(app.hook, method)
    rounds = []
    for _ in range(ROUNDS):
        host = adapter = frame = 0.0
        for question in questions:
            kept: list[Any] = []
            setattr(app.hook, method, lambda *a, kept=kept, **k: kept.append(library(*a, **k)) or kept[0])
            app.after[mode](question)
            setattr(app.hook, method, lambda *_a, kept=kept, **_k: kept[0])
            ready = app.ready(question)
            times = [time.perf_counter()]
            for ask in (app.after[mode], app.before, ready):
                ask(question)
                times.append(time.perf_counter())
            adapter += times[1] - times[0]
            host += times[2] - times[1]
            frame += times[3] - times[2]
        rounds.append((host / len(questions), adapter / len(questions), frame / len(questions)))
    delattr(app.hook, method)
    host, adapter, frame = (min(each) for each in zip(*rounds, strict=True))
    return host, adapter, frame


def figures_of(corpus: Corpus, app: App) -> dict[str, Any]:
    answers, calls = asked(corpus, app.before)
    figures: dict[str, Any] = {"before": {**quality(corpus, answers), "embedding calls a question": calls}}
    timed = corpus.questions[:TIMED]
    for mode, ours in app.after.items():
        answers, calls = asked(corpus, ours)
        row: dict[str, Any] = {**quality(corpus, answers), "embedding calls a question": calls}
        if mode in app.direct:
            direct, _ = asked(corpus, app.direct[mode])
            row |= difference(answers, direct)
            host, adapter, frame = seconds(app, mode, timed)
            row |= {
                "host_ms": round(1e3 * host, 3),
                "adapter_ms": round(1e3 * adapter, 3),
                "retriever with the answer ready_ms": round(1e3 * frame, 3),
                "overhead over host": round((adapter - frame) / host, 4),
            }
        figures[mode] = row
    return figures


APPS: dict[str, Callable[[Corpus, str, Path], App]] = {"LangChain": langchain_app, "LlamaIndex": llama_app}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with eval/covidqa")
    parser.add_argument("--questions", type=int, help="only the first ones, and write no result file")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: there is no data at {options.data}; pass --data", file=sys.stderr)
        return 0
    corpus = load(options.data)
    asked_for = slice(0, options.questions and EVERY * options.questions, EVERY)
    corpus = replace(corpus, questions=corpus.questions[asked_for], gold=corpus.gold[asked_for])
    figures: dict[str, Any] = {"paragraphs": len(corpus.texts), "questions": len(corpus.questions)}
    with tempfile.TemporaryDirectory() as folder:
        for framework, make in APPS.items():
            for engine in ("qdrant", "chroma"):
                name = f"{framework}, {engine}"
                figures[name] = figures_of(corpus, make(corpus, engine, Path(folder)))
                print(f"\n{name}")
                for row, values in figures[name].items():
                    print(f"  {row:<30} {values}", flush=True)
    if options.questions is None:
        path = write_result("frameworks", seed=None, data={SET: corpus.revision}, figures=figures)
        print(f"\nwritten to {path.relative_to(path.parents[2])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
