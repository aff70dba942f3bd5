from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merger_plugins.embedders import as_embedder
from merger_plugins.errors import DataError, DocumentError, EmptyInputError, InputError, NonFiniteError
from merger_plugins.finesse.collections import unit_texts, units
from merger_plugins.finesse.embedding import Embeddings, embedder_fingerprint, revision
from merger_plugins.finesse.follow_ups import FollowUps
from merger_plugins.finesse.tasks import TASKS, Task, available, tasks_of_folder
from tests.finesse.lab import (
    WORDS,
    SignedEmbedder,
    WordEmbedder,
    conversation_data,
    retrieval_data,
    source,
    written,
)


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
        written(tmp_path / "docs.jsonl.gz", [{"id": name, "text": text} for name in "de"]),
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


def test_paragraphs_of_a_file_from_windows_are_told_apart(tmp_path: Path):
    rows = [{"id": f"d{n}", "text": f"{WORDS[n]}.\r\n\r\n{WORDS[n + 1]}."} for n in range(3)]
    written(tmp_path / "docs.jsonl.gz", rows)
    written(tmp_path / "queries.jsonl.gz", [{"id": 1, "text": f"{WORDS[2]}?"}])
    written(tmp_path / "qrels.jsonl.gz", [{"query_id": 1, "doc_id": "d1", "passage": 1}])
    (task,) = tasks_of_folder(tmp_path)
    assert task.collection(source(tmp_path)).passages == 6


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


def own_data(folder: Path, part: str, change: dict[str, Any]) -> Task:
    """A folder of one document with two questions about it, in which the second row of a part is changed."""
    rows = {
        "docs": [{"id": 1, "text": "Moss.\n\nFern."}, {"id": "d2", "text": "Oak."}],
        "queries": [{"id": "q1", "text": "moss"}, {"id": "q2", "text": "fern"}],
        "qrels": [
            {"query_id": "q1", "doc_id": "1", "passage": 0},
            {"query_id": "q2", "doc_id": 1, "passage": 1},
        ],
    }
    changed = rows[part][1] | change
    rows[part][1] = {name: value for name, value in changed.items() if value != "ABSENT"}
    for name, written_rows in rows.items():
        written(folder / f"{name}.jsonl.gz", written_rows)
    (task,) = tasks_of_folder(folder)
    return task


def test_ids_may_be_numbers(tmp_path: Path):
    loaded = own_data(tmp_path, "docs", {}).collection(source(tmp_path))
    assert loaded.gold.tolist() == [0, 0]
    assert loaded.relevant_passage is not None
    assert loaded.relevant_passage.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("docs", {"text": ["Oak."]}, "\"text\" is a list (['Oak.']), where a text was expected"),
        ("docs", {"text": None}, '"text" is null (None), where a text was expected'),
        ("docs", {"text": " \n"}, '"text" is empty, where a text was expected'),
        ("docs", {"text": "Oak \ud83d."}, '"text" is no valid Unicode'),
        ("docs", {"text": "ABSENT"}, 'expected an object with a "text", and this one holds "id"'),
        ("docs", {"id": [2]}, '"id" is a list ([2]), where a text or a whole number was expected'),
        ("docs", {"id": True}, '"id" is true or false (True), where a text or a whole number was expected'),
        ("docs", {"id": 1}, "\"id\" is '1', as in line 1; one line each was expected"),
        ("queries", {"text": 7}, '"text" is a number (7), where a text was expected'),
        ("queries", {"id": ""}, '"id" is empty, where a name was expected'),
        ("qrels", {"query_id": "q1"}, "\"query_id\" is 'q1', as in line 1; one line each was expected"),
        ("qrels", {"query_id": "q9"}, "\"query_id\" is 'q9', and no question has that id"),
        ("qrels", {"doc_id": "d3"}, "\"doc_id\" is 'd3', and no document has that id"),
        ("qrels", {"passage": 2}, '"passage" is 2, and there are 2 passages in 1, numbered from 0'),
        ("qrels", {"passage": -1}, '"passage" is -1, and there are 2 passages in 1'),
        ("qrels", {"passage": "1"}, "\"passage\" is a text ('1'), where a whole number was expected"),
        ("qrels", {"passage": 1.0}, '"passage" is a number (1.0), where a whole number was expected'),
        ("qrels", {"passage": "ABSENT"}, 'expected an object with a "passage", and this one holds'),
    ],
)
def test_a_row_of_ones_own_data_that_cannot_be_used_is_named(
    tmp_path: Path, part: str, change: dict[str, Any], message: str
):
    task = own_data(tmp_path, part, change)
    with pytest.raises(DocumentError, match=re.escape(f"{part}.jsonl.gz, line 2: {message}")):
        task.load(source(tmp_path))


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


def test_embedders_are_told_apart_by_what_they_make():
    def told(embedder: Any, context: int | None = None) -> str:
        return embedder_fingerprint(as_embedder(embedder), context)

    words = told(SignedEmbedder())
    assert told(SignedEmbedder()) == words
    assert told(SignedEmbedder(scale=1 + 1e-6)) == words
    assert told(SignedEmbedder(most_words=50)) != words  # cuts the long text
    assert told(SignedEmbedder(), 512) != words
    assert told(SignedEmbedder(queries=-1)) != words
    own = SignedEmbedder()
    own.fingerprint = "model 1, revision 2"
    assert told(own) == "model 1, revision 2"
    with pytest.raises(InputError, match="of 5 different texts are all the same"):
        told(Fixed([0.6, 0.8]))


def test_a_context_is_checked():
    class Tells(WordEmbedder):
        max_seq_length = 140

    assert Embeddings(WordEmbedder()).room is None
    assert Embeddings(Tells()).room == int(138 / 1.4)
    assert Embeddings(Tells(), max_tokens=72).room == 50
    assert Embeddings(Tells()).tokens_at_most(["moss"], 50) == 70  # of a tokenizer that is not known
    with pytest.raises(InputError, match=r"max_tokens is 141, and the embedder .*Tells reads 140 tokens"):
        Embeddings(Tells(), max_tokens=141)
    with pytest.raises(InputError, match="max_tokens is 2"):
        Embeddings(WordEmbedder(), max_tokens=2)
