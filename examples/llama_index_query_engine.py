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

import merger_plugins
from merger_plugins.llama_index import MergerEmbedding, MergerNodePostprocessor

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


async def main() -> None:
    paths = sorted(path for path in CORPUS.iterdir() if path.suffix in (".md", ".txt"))
    documents = [Document(text=path.read_text(encoding="utf-8"), id_=path.name) for path in paths]
    question = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["documents"][7]
    index = VectorStoreIndex.from_documents(
        documents,
        embed_model=MergerEmbedding(embed_batch_size=256),
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=16)],
    )
    print(f"{question['question']}\n  right: {question['document']}, “{question['passage']}”\n")

    engines = {"as it was": index.as_query_engine(llm=MockLLM(), similarity_top_k=6)}
    for mode in ("context", "merge", "expand"):
        merged = MergerNodePostprocessor.from_index(index, mode=mode)
        engines[mode] = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, node_postprocessors=[merged])
    for name, engine in engines.items():
        answer = engine.query(question["question"])
        awaited = await engine.aquery(question["question"])
        same = [node.node_id for node in answer.source_nodes] == [
            node.node_id for node in awaited.source_nodes
        ]
        shown = " ".join(str(answer).split())  # MockLLM repeats what the model was given to read
        print(
            f"{name:9}  {len(answer.source_nodes):2} nodes, {len(shown.split()):4} words for the model, the "
            f"passage {'is' if ' '.join(question['passage'].split()) in shown else 'is not'} among them, "
            f"awaited {'the same' if same else 'others'}"
        )
        for node in answer.source_nodes[:3]:
            text = " ".join(node.text.split())
            print(f"    {node.score:.3f}  {node.node.ref_doc_id:26}  {text[:60]}")


if __name__ == "__main__":
    asyncio.run(main())
