"""The sample documents as data for the benchmark."""

from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from merger_plugins.demo.questions import load_questions
from merger_plugins.demo.tasks import demo_tasks
from tests.finesse.lab import source


def test_the_sample_documents_are_a_task(tmp_path: Path):
    articles, questions = demo_tasks(tmp_path)
    here = source(tmp_path)
    assert len(articles.load(here)) == 16
    collection = questions.collection(here)
    asked, _ = load_questions()
    assert (collection.documents, len(collection.queries)) == (16, len(asked))
    assert collection.text is not None
    assert collection.relevant_passage is not None
    passages = [part for text in collection.text.documents for part in text.split("\n\n")]
    for question, passage in zip(asked, collection.relevant_passage, strict=True):
        assert question.passage in passages[passage]
    # The same bytes each time, so that results of two machines can be compared.
    assert [task.revision for task in demo_tasks(tmp_path / "again")] == [
        articles.revision,
        questions.revision,
    ]
