"""The questions fit the sample documents and the sample chat."""

import json

from merger_plugins.demo.questions import CHAT, CORPUS, SHOWN, load_questions


def test_every_passage_is_once_in_its_document():
    documents, _ = load_questions()
    for question in documents:
        text = (CORPUS / question.document).read_text(encoding="utf-8")
        assert text.count(question.passage) == 1, question


def test_every_turn_is_in_the_chat():
    _, chat = load_questions()
    lines = (CORPUS / CHAT).read_text(encoding="utf-8").splitlines()
    turns = {json.loads(line)["turn_id"] for line in lines}
    assert {question.turn_id for question in chat} <= turns


def test_a_dozen_are_shown():
    documents, _ = load_questions()
    assert len(documents[SHOWN]) == 12
