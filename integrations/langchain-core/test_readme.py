"""The lines of the README, as printed, in an application that has `vectorstore`, `embeddings` and `texts`."""

import re
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_qdrant import QdrantVectorStore

from tests.langchain.apps import APPS, QUESTION, SUBJECTS, Counting, documents

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


class Embeddings(Counting):
    embedding_ctx_length = 512  # as OpenAIEmbeddings tells it


def test_the_lines_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    better, chats, long, calibrated = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    embeddings = Embeddings()
    app = {"vectorstore": APPS["qdrant"](embeddings), "embeddings": embeddings, "session_id": "ann"}
    app |= {"QdrantVectorStore": QdrantVectorStore, "texts": [" ".join(SUBJECTS["bread"] * 5), "Tides."]}
    app["vectorstore"].add_documents(documents())

    exec(better, app)
    assert app["retriever"].invoke(QUESTION)[0].metadata["source"] == "lighthouse"
    first, rest = chats.split("history.recall(", 1)
    exec(first, app)
    app["history"].add_messages([HumanMessage("The lighthouse wants a deposit.")])
    exec("history.recall(" + rest, app)
    exec(long, app)
    assert app["store"].similarity_search("flour for a sourdough", k=1)[0].page_content.startswith("Step 1")
    app["embeddings"] = embeddings
    exec(calibrated, app)
    assert app["embeddings"].merger.fingerprint
    app["chats"].close()
