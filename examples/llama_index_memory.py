"""Chat memory over weeks of sittings, in LlamaIndex's `Memory`.

A chat of eight sittings, in each of which the short-term memory holds a few messages; those that leave it go
to a `RollingMemoryBlock`, that is, to a Qdrant folder, where every sitting is a conversation with a rolling
vector. Every sitting opens the folder anew. Then a new sitting asks about the others.
Needs merger-plugins[cpu,llama-index,qdrant]; runs offline, within a minute.
"""

import asyncio
import json
import tempfile
from pathlib import Path

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory

import merger_plugins
from merger_plugins.llama_index import RollingMemoryBlock
from merger_plugins.qdrant import QdrantStore

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"


RECALLED = 6


def memory(store: QdrantStore, session: str) -> Memory:
    block = RollingMemoryBlock(store=store, similarity_top_k=RECALLED, across_sessions=True)
    return Memory.from_defaults(
        session_id=session, memory_blocks=[block], token_limit=100, token_flush_size=20
    )


async def main() -> None:
    lines = (CORPUS / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line) for line in lines]
    told = {turn["turn_id"]: turn["text"] for turn in turns}
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["chat"]
    sittings = list(dict.fromkeys(turn["session"] for turn in turns))

    with tempfile.TemporaryDirectory() as folder:
        for sitting in sittings:
            with QdrantStore(folder, contextual=True) as store:
                chat = memory(store, sitting)
                for turn in turns:
                    if turn["session"] == sitting:
                        role = "assistant" if turn["speaker"] == "Assistant" else "user"
                        await chat.aput(ChatMessage(role=role, content=turn["text"]))

        with QdrantStore(folder) as store:
            stored = {one.id: one.chunks for one in store.documents()}
            store.calibrate()
            chat = memory(store, "a new sitting")
            recalled = [await chat.aget(input=question["question"]) for question in asked]
            raw = [store.search(question["question"], RECALLED, "chunk") for question in asked]
    texts = [messages[0].content or "" for messages in recalled]
    plain = ["\n".join(hit.text or "" for hit in hits) for hits in raw]
    print(
        f"{sum(stored.values())} of {len(turns)} turns in {len(stored)} sittings left the short-term memory. "
        f"{RECALLED} of them are recalled for a question;\nthe one that answers is among them:"
    )
    for kind, found in (("turns as they are", plain), ("turns in context, the block's", texts)):
        count = sum(told[question["turn_id"]] in text for question, text in zip(asked, found, strict=True))
        print(f"  {kind:30} for {count} of {len(asked)} questions")
    shown = next(row for row, question in enumerate(asked) if told[question["turn_id"]] in texts[row])
    print(f"\n{asked[shown]['question']}\n{texts[shown].strip()}")


if __name__ == "__main__":
    asyncio.run(main())
