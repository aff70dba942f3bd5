"""A LangChain RAG application before and after: a few lines, and what its retriever finds.

The application: chunks of sixteen documents in Qdrant through langchain-qdrant, a retriever, a prompt, and
LangChain's fake model, the only part that is not real. After: the same, and merged vectors beside it.
Needs merger-plugins[cpu,langchain,qdrant] and langchain-qdrant; runs offline, in memory, within a minute.

    + from merger_plugins.langchain import MergerVectorStore
    + from merger_plugins.qdrant import QdrantStore

      vectorstore = QdrantVectorStore.from_documents(chunks, embeddings, ...)
    + hook = QdrantStore(vectorstore.client, "app", embedder=embeddings)
    + vectorstore = MergerVectorStore(vectorstore, hook)
    - retriever = vectorstore.as_retriever(search_kwargs={"k": 4})
    + retriever = vectorstore.as_retriever(search_type="fused", search_kwargs={"k": 4})
"""

import json
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_qdrant import QdrantVectorStore

import merger_plugins
from merger_plugins.chunking import SentenceChunker
from merger_plugins.embedders import load_embedder
from merger_plugins.langchain import MergerVectorStore
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


def place(found: list[Document], right: str) -> int | None:
    """Where the first chunk of the right document is, from 1."""
    sources = [document.metadata["source"] for document in found]
    return sources.index(right) + 1 if right in sources else None


def main() -> None:
    embeddings = AppEmbeddings()
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    chunks = [chunk for path in paths for chunk in chunks_of(path)]
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]

    # Before.
    vectorstore = QdrantVectorStore.from_documents(
        chunks, embeddings, location=":memory:", collection_name="app"
    )
    before = vectorstore.as_retriever(search_kwargs={"k": 4})

    # After. An application that starts with an empty collection needs no backfill(): what it adds is merged.
    hook = QdrantStore(vectorstore.client, "app", embedder=embeddings)
    vectorstore = MergerVectorStore(vectorstore, hook)
    hook.backfill()
    after = vectorstore.as_retriever(search_type="fused", search_kwargs={"k": 4})

    print(f"{len(chunks)} chunks of {len(paths)} documents, {len(asked)} questions, 4 chunks each.\n")
    places: dict[str, list[int | None]] = {"before": [], "after": []}
    for question in asked:
        found = {name: r.invoke(question["question"]) for name, r in (("before", before), ("after", after))}
        for name, documents in found.items():
            places[name].append(place(documents, question["document"]))
        if places["before"][-1] != places["after"][-1]:
            print(f"{question['question']}\n  right: {question['document']}")
            for name, documents in found.items():
                print(f"  {name:6}  {', '.join(document.metadata['source'] for document in documents)}")
            print()
    for name, ranks in places.items():
        mean = sum(1 / rank for rank in ranks if rank) / len(ranks)
        print(
            f"{name:6}  right document first: {ranks.count(1)}, among the four: "
            f"{len(ranks) - ranks.count(None)}, mean of 1/place {mean:.3f}"
        )

    # The rest of the application stays as it was.
    prompt = ChatPromptTemplate.from_template("Answer from this:\n{context}\n\nQuestion: {question}")
    chain = (
        {
            "context": after | (lambda documents: "\n".join(d.page_content for d in documents)),
            "question": RunnablePassthrough(),
        }
        | prompt
        | FakeListChatModel(responses=["(the model's answer)"])
        | StrOutputParser()
    )
    print(f"\n{asked[0]['question']} {chain.invoke(asked[0]['question'])}")

    # Added and deleted as before; the merged vectors follow.
    (new,) = vectorstore.add_documents(
        [
            Document(
                page_content="The fog signal was rebuilt in 2019.",
                metadata={"source": "fog.md", "start_index": 0},
            )
        ]
    )
    found = vectorstore.as_retriever(search_type="document", search_kwargs={"k": 1}).invoke("fog signal")
    print(f"added: {found[0].metadata['source']}")
    vectorstore.delete([new])
    found = vectorstore.as_retriever(search_type="document", search_kwargs={"k": 1}).invoke("fog signal")
    print(f"deleted: {found[0].metadata['source']}")


if __name__ == "__main__":
    main()
