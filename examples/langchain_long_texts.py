"""Whole documents in LangChain and Qdrant: cut off by the model, merged, and merged with calibration.

Sixteen documents of about 1,600 tokens each, one vector a document; the embedding model reads 510 tokens.
Needs merger-plugins[cpu,langchain] and langchain-qdrant; runs offline, in memory, in well under a minute.
"""

import json
from pathlib import Path

from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore

import merger_plugins
from merger_plugins.embedders import load_embedder
from merger_plugins.langchain import MergerEmbeddings

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


class PlainEmbeddings(Embeddings):
    """What an application has before: the bundled all-MiniLM-L6-v2, which cuts off what it cannot read."""

    def __init__(self) -> None:
        self.model = load_embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.model.embed_query(text).tolist()


def rankings(embeddings: Embeddings, documents: dict[str, str], questions: list[str]) -> list[list[str]]:
    """For each question the names of all documents, best first."""
    store = QdrantVectorStore.from_texts(
        list(documents.values()),
        embeddings,
        metadatas=[{"name": name} for name in documents],
        location=":memory:",
        collection_name="documents",
    )
    found = [store.similarity_search(question, k=len(documents)) for question in questions]
    return [[document.metadata["name"] for document in documents] for documents in found]


def main() -> None:
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    documents = {path.name: path.read_text(encoding="utf-8") for path in paths}
    questions = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]
    asked = [question["question"] for question in questions]
    right = [question["document"] for question in questions]

    merged = MergerEmbeddings()
    found = {
        "cut off": rankings(PlainEmbeddings(), documents, asked),
        "merged": rankings(merged, documents, asked),
        "merged, calibrated": rankings(merged.calibrated(documents.values()), documents, asked),
    }
    places = {
        name: [ranking.index(answer) + 1 for ranking, answer in zip(ranked, right, strict=True)]
        for name, ranked in found.items()
    }

    differing = [row for row in range(len(asked)) if len({places[name][row] for name in found}) > 1]
    print(
        f"The {len(differing)} of {len(asked)} questions for which the place of the right document differs:\n"
    )
    for row in differing:
        print(f"{asked[row]}\n  right: {right[row]}")
        for name, ranked in found.items():
            print(f"  {name:18}  place {places[name][row]:2}   first: {', '.join(ranked[row][:2])}")
        print()

    print(f"Right document in first place, and mean of 1/place, over all {len(asked)} questions:")
    for name, ranks in places.items():
        print(f"  {name:18}  {ranks.count(1)}   {sum(1 / place for place in ranks) / len(ranks):.3f}")


if __name__ == "__main__":
    main()
