import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merger_plugins.chunking import Chunk, SentenceChunker
from merger_plugins.errors import EmptyInputError, InputError


def words(text: str) -> int:
    return len(text.split())


def letters(text: str) -> int:
    return len(text.strip())


def split(text: str, size: int = 6) -> list[str]:
    return [chunk.text for chunk in SentenceChunker(size, words).split(text)]


def test_sentences_are_packed_while_they_fit():
    text = "One two three. Four five six. Seven eight nine."
    assert split(text) == ["One two three. Four five six.", "Seven eight nine."]


def test_a_paragraph_ends_a_chunk_even_where_the_next_would_fit():
    assert split("A heading\n\nIts text.\n \nMore.") == ["A heading", "Its text.", "More."]


def test_a_line_break_is_a_sentence_boundary_but_not_a_paragraph():
    assert split("- one two three\n- four five six\n- seven") == [
        "- one two three",
        "- four five six\n- seven",
    ]


def test_a_slightly_long_sentence_stays_whole_and_a_long_one_is_cut_evenly_between_words():
    assert split("a b c d e f g h i.", 6) == ["a b c d e f g h i."]
    assert split("a b c d e f g h i j k l.", 6) == ["a b c d e f", "g h i j k l."]


def test_text_without_words_is_cut_between_characters():
    chunks = SentenceChunker(4, letters).split("一二三四五六七八九十")
    assert "".join(chunk.text for chunk in chunks) == "一二三四五六七八九十"
    assert max(chunk.tokens for chunk in chunks) <= 6


def test_full_stops_of_other_scripts_end_sentences():
    assert split("你好。再见！", 1) == ["你好。", "再见！"]


def test_a_closing_quote_belongs_to_its_sentence():
    assert split('He said "go on." She went.', 4) == ['He said "go on."', "She went."]


@pytest.mark.parametrize("text", ["", "  \n\n\t "])
def test_empty_text_is_refused(text):
    with pytest.raises(EmptyInputError, match="empty"):
        SentenceChunker(5, words).split(text)


def test_what_is_not_text_is_refused():
    with pytest.raises(InputError, match="bytes"):
        SentenceChunker(5, words).split(b"abc")


def test_a_size_below_one_is_refused():
    with pytest.raises(InputError, match="0"):
        SentenceChunker(0)


texts = st.text(st.sampled_from("ab. !?\n。é") | st.characters(codec="utf-8"), min_size=1, max_size=300)


@given(texts, st.integers(1, 20))
def test_chunks_are_exact_pieces_in_order_and_hold_all_that_is_not_white_space(text, size):
    if not text.strip():
        return
    chunks = SentenceChunker(size, letters).split(text)
    assert [Chunk(text[c.start : c.end], c.start, c.end, c.tokens) for c in chunks] == chunks
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split())
    assert all(c.tokens >= 1 and c.text.strip() for c in chunks)
