"""The questions about the sample documents and the sample chat, with their right answers."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

CORPUS: Final = Path(str(files("merger_plugins"))) / "demo" / "corpus"
"""Sixteen documents, `CHAT` and the questions."""

CHAT: Final = "chat.jsonl"

SHOWN: Final = slice(2, None, 3)
"""The questions that are printed one by one: every third."""


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about the documents.

    Attributes:
        question: as a person would ask it.
        document: id of the document that answers it.
        passage: the words of the document that do.
    """

    question: str
    document: str
    passage: str


@dataclass(frozen=True)
class ChatQuestion:
    """A question about the chat, and the id of the turn that answers it."""

    question: str
    turn_id: str


def load_questions() -> tuple[list[DocumentQuestion], list[ChatQuestion]]:
    """All questions: about the documents, about the chat."""
    questions = json.loads((CORPUS / "questions.json").read_text(encoding="utf-8"))
    return (
        [DocumentQuestion(**question) for question in questions["documents"]],
        [ChatQuestion(**question) for question in questions["chat"]],
    )
