"""A LlamaIndex query engine end to end, its nodes re-scored, collapsed or completed by merged vectors.

Sixteen documents in LlamaIndex's simple store, `MergerEmbedding` as the embedding model, and LlamaIndex's
MockLLM, the only part that is not real: it repeats its prompt. Vectors come from the store; the roots of the
documents that were found are merged on the spot, as the simple store has no ingestion hook.
Needs merger-plugins[cpu,llama-index]; runs offline, in memory, within a minute.
"""

import asyncio
import json
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeWithScore, QueryBundle

import merger_plugins
from merger_plugins.llama_index import MergerEmbedding, MergerNodePostprocessor

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


def read(nodes: list[NodeWithScore]) -> str:
    return " ".join(" ".join(node.text for node in nodes).split())


async def main() -> None:
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    documents = [Document(text=path.read_text(encoding="utf-8"), id_=path.name) for path in paths]
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"]
    embed_model = MergerEmbedding(embed_batch_size=256)
    index = VectorStoreIndex.from_documents(
        documents,
        embed_model=embed_model,
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=16)],
    )
    engines = {"as it was": index.as_query_engine(llm=MockLLM(), similarity_top_k=6)}
    for mode in ("context", "merge", "expand"):
        merged = MergerNodePostprocessor.from_index(index, mode=mode)
        engines[mode] = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, node_postprocessors=[merged])

    print(f"{len(asked)} questions, 6 nodes retrieved for each:\n")
    vectors = [embed_model.get_query_embedding(question["question"]) for question in asked]
    for name, engine in engines.items():
        found = [
            engine.retrieve(QueryBundle(question["question"], embedding=vector))
            for question, vector in zip(asked, vectors, strict=True)
        ]
        first = [nodes[0].node.ref_doc_id for nodes in found]
        texts = [read(nodes) for nodes in found]
        right = sum(question["document"] == one for question, one in zip(asked, first, strict=True))
        answered = sum(
            " ".join(question["passage"].split()) in text for question, text in zip(asked, texts, strict=True)
        )
        words = sum(len(text.split()) for text in texts) // len(texts)
        print(
            f"{name:9}  right document first: {right}, the words that answer among the nodes': {answered}, "
            f"nodes: {sum(map(len, found)) / len(found):.1f}, words: {words}"
        )

    question = asked[12]
    print(f"\n{question['question']}\n  right: {question['document']}")
    for name, engine in engines.items():
        answer, awaited = engine.query(question["question"]), await engine.aquery(question["question"])
        same = [node.score for node in answer.source_nodes] == [node.score for node in awaited.source_nodes]
        print(f"{name}: MockLLM was given {len(str(answer).split())} words; awaited, the same nodes: {same}")
        for node in answer.source_nodes[:3]:
            text = " ".join(node.text.split())
            print(f"    {node.score:.3f}  {node.node.ref_doc_id:26}  {text[:60]}")


if __name__ == "__main__":
    asyncio.run(main())
