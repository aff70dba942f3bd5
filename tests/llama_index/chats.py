"""A conversation for the tests of memory."""

from llama_index.core.base.llms.types import ChatMessage

LINES = [
    ("user", "My sister Anna keeps bees behind the old mill."),
    ("assistant", "How many hives does she have?"),
    ("user", "Seven hives, and she sells the honey in June."),
    ("assistant", "Honey in June sounds early."),
    ("user", "The rent of my flat goes up in March."),
    ("assistant", "Ask the landlord for a written notice."),
    ("user", "I bought a lamp for the stairs."),
    ("assistant", "Which glass does the lamp have?"),
]


def say(lines: list[tuple[str, str]] = LINES) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=text) for role, text in lines]
