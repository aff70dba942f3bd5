from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merger_plugins.errors import DataError, DocumentError, EmptyInputError, InputError, NonFiniteError
from merger_plugins.finesse.collections import unit_texts, units
from merger_plugins.finesse.embedding import Embeddings, revision
from merger_plugins.finesse.follow_ups import FollowUps
from merger_plugins.finesse.tasks import TASKS, available
from tests.finesse.lab import WORDS, WordEmbedder, conversation_data, retrieval_data, source, written


def test_a_set_is_read_cut_and_embedded(tmp_path: Path):
    task = retrieval_data(tmp_path)
    loaded = task.collection(source(tmp_path))
    assert loaded.text is not None
    assert loaded.passage is not None
    assert (loaded.documents, len(loaded.queries), loaded.passages) == (6, 6, 24)
    paragraphs = [part for text in loaded.text.documents for part in text.split("\n\n")]
    for chunk, (start, end) in enumerate(loaded.text.spans):
        text = loaded.text.documents[loaded.document[chunk]][start:end]
        assert text.strip() in paragraphs[loaded.passage[chunk]]
        expected = WordEmbedder().embed_query(text)
        np.testing.assert_allclose(loaded.chunks[chunk], expected / np.linalg.norm(expected), atol=1e-6)
    assert loaded.relevant_passage is not None
    for query, passage, document in zip(
        loaded.text.queries, loaded.relevant_passage, loaded.gold, strict=True
    ):
        assert query.rstrip("?") in paragraphs[passage]
        assert passage // 4 == document
    assert [text.strip() for text in unit_texts(loaded, units(loaded, "passages"))] == paragraphs
    assert list(unit_texts(loaded, units(loaded, "documents"))) == list(loaded.text.documents)


def test_passages_of_one_word_are_told_apart(tmp_path: Path):
    text = "\n\n".join(f"{word}." for word in WORDS)
    files = [
        written(tmp_path / "docs.jsonl.gz", [{"id": "d", "text": text}] * 2),
        written(tmp_path / "queries.jsonl.gz", [{"id": "q", "text": WORDS[7]}]),
        written(tmp_path / "qrels.jsonl.gz", [{"query_id": "q", "doc_id": "d", "passage": 7}]),
    ]
    task = replace(TASKS["covidqa"], files=tuple(file.name for file in files), revision=revision(files))
    loaded = task.collection(source(tmp_path))
    assert loaded.passage is not None
    assert loaded.passage.tolist() == list(range(2 * len(WORDS)))


def test_loose_passages_may_have_several_right_answers(tmp_path: Path):
    loose, asked = conversation_data(tmp_path)
    loaded = loose.collection(source(tmp_path))
    assert loaded.relevant.shape == (12, len(WORDS) - 2)
    assert loaded.relevant.sum(axis=1).tolist() == [2] + [1] * 11
    assert loaded.text is not None
    assert loaded.text.queries[0] == "moss viol?"  # in its self-contained form
    with pytest.raises(InputError, match="no collection of documents"):
        asked.collection(source(tmp_path))


def test_follow_ups_have_their_histories(tmp_path: Path):
    _, task = conversation_data(tmp_path)
    loaded = task.load(source(tmp_path))
    assert isinstance(loaded, FollowUps)
    assert [len(history.vectors) for history in loaded.questions.history] == [1] * 12
    assert loaded.rewritten is not None
    assert not np.allclose(loaded.rewritten.vectors, loaded.questions.vectors)


def test_absent_data_is_named_and_skipped(tmp_path: Path):
    task = retrieval_data(tmp_path)
    absent = replace(task, name="gone", files=("eval/gone/docs.jsonl.gz",))
    here, reasons = available(tmp_path, [task, absent])
    assert here == [task]
    assert reasons == [f"skipped: gone needs eval/gone/docs.jsonl.gz, which {tmp_path} does not hold"]
    with pytest.raises(DataError, match=r"gone needs eval/gone/docs\.jsonl\.gz.*leave this task out"):
        absent.load(source(tmp_path))


def test_data_of_another_revision_is_refused(tmp_path: Path):
    task = retrieval_data(tmp_path)
    retrieval_data(tmp_path, seed=1)
    with pytest.raises(DataError, match=rf"are of revision \w+, and .* are for {task.revision}"):
        task.load(source(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path):
    task = retrieval_data(tmp_path)
    path = tmp_path / task.files[0]
    path.write_bytes(path.read_bytes()[:-20])
    torn = replace(task, revision=revision(tmp_path / name for name in task.files))
    with pytest.raises(DocumentError, match=r"docs\.jsonl\.gz: cannot be read"):
        torn.load(source(tmp_path))


def test_a_row_that_is_no_object_is_named(tmp_path: Path):
    task = retrieval_data(tmp_path)
    with gzip.open(tmp_path / task.files[1], "at", encoding="utf-8") as file:
        file.write("[1, 2]\n")
    changed = replace(task, revision=revision(tmp_path / name for name in task.files))
    with pytest.raises(DocumentError, match=r"queries\.jsonl\.gz, line 7: expected an object"):
        changed.load(source(tmp_path))


def test_tasks_are_told_apart():
    assert len({task.name for task in TASKS.values()}) == len(TASKS)
    assert all(task.licence and task.metric and len(task.revision) == 16 for task in TASKS.values())


def test_vectors_are_kept_between_runs(tmp_path: Path):
    embedder = WordEmbedder()
    keep = Embeddings(embedder, tmp_path, fingerprint="words")
    first = keep("texts", ["moss fern", "oak"])
    again = Embeddings(embedder, tmp_path, fingerprint="words")("texts", ["moss fern", "oak"])
    np.testing.assert_array_equal(first, again)
    assert embedder.calls == 1
    keep("texts", ["moss fern", "oak", "pine"])
    Embeddings(embedder, tmp_path, fingerprint="others")("texts", ["moss fern", "oak"])
    assert embedder.calls == 3
    assert len(list(tmp_path.iterdir())) == 3
    keep.queries("texts", ["moss fern", "oak"])
    assert len(list(tmp_path.iterdir())) == 4


def test_vectors_of_an_embedder_without_a_name_are_not_kept(tmp_path: Path):
    with pytest.raises(InputError, match="fingerprint="):
        Embeddings(WordEmbedder(), tmp_path)


class Fixed:
    """Gives the same rows whatever is asked."""

    def __init__(self, row: Sequence[float]) -> None:
        self.row = row

    def embed_documents(self, texts: Sequence[str]) -> Any:
        return np.tile(np.array(self.row, np.float32), (len(texts), 1))

    def embed_query(self, text: str) -> Any:
        return np.array(self.row, np.float32)


def test_vectors_are_normalised():
    found = Embeddings(WordEmbedder())("texts", ["moss moss fern", "oak"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "texts", "error", "message"),
    [
        ([0.6, 0.8], ["moss", "fern"], InputError, "vectors of 2 different texts are all the same"),
        ([np.nan, 1.0], ["moss"], NonFiniteError, "NaN"),
        ([0.0, 0.0], ["moss"], InputError, "length zero"),
        ([1.0, 0.0], [], EmptyInputError, "empty"),
    ],
)
def test_an_embedder_that_cannot_be_measured_is_refused(
    row: list[float], texts: list[str], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        Embeddings(Fixed(row))("texts", texts)


def test_one_text_twice_may_have_one_vector_twice():
    assert len(Embeddings(Fixed([3.0, 4.0]))("texts", ["moss", "moss"])) == 2
