import numpy as np
import pytest

from merger_plugins.chunking import SentenceChunker
from merger_plugins.errors import DimensionError, EmptyInputError, InputError, NonFiniteError, ZeroVectorError
from merger_plugins.stores.documents import Document, pieces_of_turn, prepared, words

TEXT = "The first sentence is here. The second one follows it.\n\nA new paragraph starts."
CHUNKER = SentenceChunker(size=6, count_tokens=words)


def test_text_is_split_with_offsets_and_masses():
    pieces = prepared(Document("a", TEXT, metadata={"lang": "en"}), CHUNKER, words).pieces
    assert [piece.payload["page_content"] for piece in pieces] == [
        "The first sentence is here.",
        "The second one follows it.",
        "A new paragraph starts.",
    ]
    for piece in pieces:
        assert TEXT[piece.payload["start"] : piece.payload["end"]] == piece.embed
        assert piece.payload["metadata"] == {"lang": "en"}
    assert [piece.payload["mass"] for piece in pieces] == [5, 5, 4]


def test_chunks_are_taken_as_they_are_and_have_no_offsets():
    pieces = prepared(Document("a", chunks=["one two", "three"]), CHUNKER, words).pieces
    assert [piece.embed for piece in pieces] == ["one two", "three"]
    assert [piece.payload["mass"] for piece in pieces] == [2, 1]
    assert "start" not in pieces[0].payload


def test_vectors_keep_their_texts_and_masses():
    document = Document("a", vectors=np.eye(2, 3), chunks=["x", "y"], masses=[3, 4])
    pieces = prepared(document, CHUNKER, words).pieces
    assert [piece.embed for piece in pieces] == [None, None]
    assert [piece.payload["page_content"] for piece in pieces] == ["x", "y"]
    assert [piece.payload["mass"] for piece in pieces] == [3, 4]
    alike = prepared(Document("a", vectors=np.eye(2, 3)), CHUNKER, words).pieces
    assert [piece.payload["mass"] for piece in alike] == [1, 1]
    assert "page_content" not in alike[0].payload


@pytest.mark.parametrize(
    ("document", "error", "says"),
    [
        (Document("a"), InputError, "nothing"),
        (Document("a", "text", chunks=["x"]), InputError, "text and chunks"),
        (Document("a", "text", vectors=np.eye(2)), InputError, "text and vectors"),
        (Document("", "text"), InputError, "id"),
        (Document(7, "text"), InputError, "id"),
        (Document("a", " \n "), EmptyInputError, "no text"),
        (Document("a", b"bytes"), InputError, "bytes"),
        (Document("a", chunks=[]), EmptyInputError, "no chunks"),
        (Document("a", chunks=["x", "  "]), EmptyInputError, "Chunk 1"),
        (Document("a", chunks="text"), InputError, "list of strings"),
        (Document("a", chunks=["x", None]), InputError, "list of strings"),
        (Document("a", vectors=np.eye(3), chunks=["x"]), DimensionError, "3 vectors and 1 chunks"),
        (Document("a", vectors=[[1.0, np.nan]]), NonFiniteError, "NaN"),
        (Document("a", vectors=np.zeros((1, 3))), ZeroVectorError, "length zero"),
        (Document("a", vectors=np.zeros((0, 3))), EmptyInputError, "empty"),
        (Document("a", chunks=["x"], masses=[0]), InputError, "above 0"),
        (Document("a", chunks=["x"], masses=[1, 2]), DimensionError, r"\(1,\)"),
        (Document("a", "text", metadata={"x": {1}}), InputError, "metadata of 'a'"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason(document, error, says):
    with pytest.raises(error, match=says):
        prepared(document, CHUNKER, words)


def turn(content, **options):
    defaults = {"text": None, "mass": None, "speaker": None, "time": None, "metadata": None, "longest": None}
    return pieces_of_turn(content, **(defaults | options), chunker=CHUNKER, count=words)


def test_a_turn_is_embedded_with_its_speaker_and_stored_without():
    (piece,) = turn("hello there", speaker="Ada", time=3)
    assert piece.embed == "Ada: hello there"
    assert piece.payload["page_content"] == "hello there"
    assert (piece.payload["speaker"], piece.payload["time"], piece.payload["mass"]) == ("Ada", 3, 3)


def test_a_turn_longer_than_the_embedder_reads_becomes_several_chunks():
    pieces = turn(TEXT, speaker="Ada", longest=10, mass=28)
    assert [piece.embed for piece in pieces] == [
        "Ada: The first sentence is here.",
        "Ada: The second one follows it.",
        "Ada: A new paragraph starts.",
    ]
    assert sum(piece.payload["mass"] for piece in pieces) == pytest.approx(28)
    assert len(turn(TEXT, longest=14)) == 1


def test_a_turn_may_be_a_vector_with_a_text():
    (piece,) = turn([1.0, 2.0], text="hello", mass=4, speaker="Ada")
    assert piece.embed is None
    np.testing.assert_array_equal(piece.vector, [1, 2])
    assert (piece.payload["page_content"], piece.payload["mass"]) == ("hello", 4)


@pytest.mark.parametrize(
    ("content", "options", "error", "says"),
    [
        ("  ", {}, EmptyInputError, "no text"),
        ("hello", {"text": "hello"}, InputError, "text="),
        ([0.0, 0.0], {}, ZeroVectorError, "length zero"),
        ([[1.0, 0.0]], {}, DimensionError, "shape"),
        ("hello", {"mass": -1}, InputError, "above 0"),
        ("hello", {"metadata": {"x": object()}}, InputError, "metadata"),
    ],
)
def test_a_turn_that_cannot_be_stored_is_refused(content, options, error, says):
    with pytest.raises(error, match=says):
        turn(content, **options)
