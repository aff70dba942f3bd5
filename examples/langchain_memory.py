"""Chat memory over weeks of sittings, in a LangChain application.

The prompt holds the last messages; what was said in earlier weeks is recalled from `MergerChatHistory`, which
stores every message as a turn of one long conversation, in context of its sitting. The folder is opened anew
for each sitting. Needs merger-plugins[cpu,langchain,qdrant]; runs offline, with LangChain's fake model.
"""

import json
import tempfile
from pathlib import Path

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate

import merger_plugins
from merger_plugins.langchain import MergerChatHistory
from merger_plugins.qdrant import QdrantStore

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"
WINDOW, RECALLED = 10, 6

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Said earlier:\n{recalled}"), ("placeholder", "{last}"), ("human", "{question}")]
)


def main() -> None:
    turns = [json.loads(line) for line in (CORPUS / "chat.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))["chat"]
    times = {turn["turn_id"]: turn["time"] for turn in turns}
    texts = {turn["turn_id"]: turn["text"] for turn in turns}

    with tempfile.TemporaryDirectory() as folder:
        for sitting in dict.fromkeys(turn["session"] for turn in turns):
            with QdrantStore(folder, contextual=True) as chats:
                # These are chats of other days; an application that stores what is said now needs no said_at.
                history = MergerChatHistory(chats, "mara", said_at=lambda message: times[str(message.id)])
                history.add_messages([message_of(turn) for turn in turns if turn["session"] == sitting])

        with QdrantStore(folder) as chats:
            chats.calibrate()
            history = MergerChatHistory(chats, "mara")
            last = history.messages[-WINDOW:]
            recalled = [history.recall(question["question"], RECALLED) for question in asked]
            plain = [chats.search(question["question"], RECALLED, "chunk") for question in asked]

    gold = [question["turn_id"] for question in asked]
    counts = {
        f"the last {WINDOW} messages": [[message.id for message in last]] * len(asked),
        f"{RECALLED} by their own vectors": [
            [hit.metadata["langchain_id"] for hit in hits] for hits in plain
        ],
        f"{RECALLED} recalled, in context": [[message.id for message in found] for found in recalled],
    }
    print(f"{len(turns)} messages in eight sittings; the one that answers is among")
    for name, found in counts.items():
        right = sum(answer in ids for answer, ids in zip(gold, found, strict=True))
        print(f"  {name:24} for {right} of {len(asked)} questions")

    shown = next(row for row, found in enumerate(recalled) if gold[row] in [m.id for m in found])
    chain = PROMPT | FakeListChatModel(responses=["(the model's answer)"])
    said = "\n".join(f"{message.type}: {message.content}" for message in recalled[shown])
    answer = chain.invoke({"recalled": said, "last": last, "question": asked[shown]["question"]})
    print(f"\n{asked[shown]['question']}\n{said}\nThe answer is in: {texts[gold[shown]]}\n{answer.content}")


def message_of(turn: dict[str, str]) -> BaseMessage:
    kind = AIMessage if turn["speaker"] == "Assistant" else HumanMessage
    return kind(turn["text"], id=turn["turn_id"])


if __name__ == "__main__":
    main()
