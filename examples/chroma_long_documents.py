"""Long documents in Chroma through LangChain, one vector each: cut off before, merged after.

One line changes, and the documents are indexed anew: `MergerEmbeddings` embeds the chunks of a long text and
merges them, calibrated on the collection's own texts. Questions are embedded as before. Needs
langchain-chroma and merger-plugins[cpu,langchain,chroma]; runs offline, in a temporary folder.
"""

import json
import tempfile
from pathlib import Path

from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

import merger_plugins
from merger_plugins import load_merger
from merger_plugins.embedders import load_embedder
from merger_plugins.langchain import MergerEmbeddings

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


class AppEmbeddings(Embeddings):
    """What the application embeds with: it cuts off what is longer than 510 tokens."""

    def __init__(self) -> None:
        self.model = load_embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.model.embed_query(text).tolist()


def main() -> None:
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    documents = {path.name: path.read_text(encoding="utf-8") for path in paths}
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]

    with tempfile.TemporaryDirectory() as folder:
        before = Chroma("before", AppEmbeddings(), persist_directory=folder)
        before.add_texts(list(documents.values()), ids=list(documents))
        report("cut off", before, asked)

        embeddings = MergerEmbeddings().calibrated(documents.values())
        after = Chroma("after", embeddings, persist_directory=folder)
        after.add_texts(list(documents.values()), ids=list(documents))
        report("merged", after, asked)

        # The calibrated merger belongs to the index: keep it, and open the index with it again.
        embeddings.merger.save(Path(folder) / "merger")
        again = MergerEmbeddings(merger=load_merger(Path(folder) / "merger"))
        opened = Chroma("after", again, persist_directory=folder)
        question = asked[0]["question"]
        print(f"opened again: {opened.similarity_search(question, k=1)[0].id}")


def report(name: str, store: Chroma, asked: list[dict[str, str]]) -> None:
    """How many right documents are first and among the first three."""
    found = [[d.id for d in store.similarity_search(q["question"], k=3)] for q in asked]
    right = [question["document"] for question in asked]
    first = sum(names[0] == gold for names, gold in zip(found, right, strict=True))
    three = sum(gold in names for names, gold in zip(found, right, strict=True))
    print(f"{name:8}  right document first: {first} of {len(asked)}, among three: {three}")


if __name__ == "__main__":
    main()
