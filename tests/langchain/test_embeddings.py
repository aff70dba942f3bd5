import asyncio
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

import merger_plugins
from merger_plugins import CalibratedMerger, MeanMerger, load_merger
from merger_plugins.chunking import Chunk, SentenceChunker
from merger_plugins.embedders import load_embedder
from merger_plugins.errors import DimensionError, InputError, NonFiniteError
from merger_plugins.langchain import UNKNOWN_TOKENIZER_MARGIN, MergerEmbeddings

CORPUS = Path(merger_plugins.__file__).parent / "demo" / "corpus"
FAKE = DeterministicFakeEmbedding(size=12)
SENTENCES = [f"Sentence {number} says that {number} and {number} make more." for number in range(40)]
LONG = " ".join(SENTENCES)


def words(text: str) -> int:
    return len(text.split())


def wrapping(embeddings: Any = FAKE, **settings: Any) -> MergerEmbeddings:
    """A context of 30 words."""
    return MergerEmbeddings(embeddings, **{"max_tokens": 32, "count_tokens": words, **settings})


class Recording(Embeddings):
    """FAKE, with notes of what it was asked, and vectors that a function changes."""

    def __init__(self, change: Callable[[list[list[float]]], Any] = lambda rows: rows) -> None:
        self.calls: list[list[str]] = []
        self.change = change

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(texts)
        return self.change(FAKE.embed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        return self.change([FAKE.embed_query(text)])[0]


def unit(vector: Any) -> Any:
    return np.asarray(vector) / np.linalg.norm(vector)


# What comes out


@pytest.mark.parametrize("text", ["short", "two words", "", " \n "])
def test_short_texts_keep_the_very_numbers_of_the_model(text: str) -> None:
    (vector,) = wrapping().embed_documents([text])
    assert vector == FAKE.embed_documents([text])[0]
    assert {type(value) for value in vector} == {float}


def test_white_space_is_never_split_however_it_is_counted() -> None:
    blank = " \n" * 50
    assert wrapping(count_tokens=len).embed_documents([blank]) == FAKE.embed_documents([blank])


def test_queries_keep_the_very_numbers_however_long() -> None:
    assert wrapping().embed_query(LONG) == FAKE.embed_query(LONG)


def test_the_bundled_embedder_is_the_default_and_keeps_its_numbers() -> None:
    embeddings, bundled = MergerEmbeddings(), load_embedder()
    assert (
        embeddings.embed_documents(["a tide table", ""])
        == bundled.embed_documents(["a tide table", ""]).tolist()
    )
    assert embeddings.embed_query("when is low water?") == bundled.embed_query("when is low water?").tolist()


def test_a_long_text_is_half_its_opening_and_half_the_mean_of_its_chunks() -> None:
    chunks = SentenceChunker(20, words).split(LONG)
    assert [chunk.tokens for chunk in chunks[:2]] == [18, 18]  # so the first alone fits 30 words
    opening = unit(FAKE.embed_documents([chunks[0].text])[0])
    rows = [
        unit(row) * chunk.tokens
        for row, chunk in zip(FAKE.embed_documents([c.text for c in chunks]), chunks, strict=True)
    ]
    expected = unit(opening + unit(np.sum(rows, axis=0)))
    (vector,) = wrapping().embed_documents([LONG])
    np.testing.assert_allclose(unit(vector), expected, atol=1e-6)


def test_masses_count() -> None:
    class Lopsided:
        def split(self, text: str) -> list[Chunk]:
            half = len(text) // 2
            return [Chunk(text[:half], 0, half, 30), Chunk(text[half:], half, len(text), 1)]

    text = " ".join(["word"] * 40)
    first, second = (
        unit(row) for row in FAKE.embed_documents([text[: len(text) // 2], text[len(text) // 2 :]])
    )
    (vector,) = wrapping(chunker=Lopsided()).embed_documents([text])
    np.testing.assert_allclose(unit(vector), unit(first + unit(30 * first + second)), atol=1e-6)


def test_a_merged_vector_is_as_long_as_that_of_its_opening() -> None:
    opening = SentenceChunker(20, words).split(LONG)[0].text
    (vector,) = wrapping().embed_documents([LONG])
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(FAKE.embed_query(opening)), rel=1e-6)


def test_one_call_holds_all_texts_and_no_piece_is_longer_than_the_context() -> None:
    source = Recording()
    vectors = wrapping(source).embed_documents(["one", LONG, "two", LONG.upper(), ""])
    (pieces,) = source.calls
    assert len(vectors) == 5
    assert {"one", "two", ""} < set(pieces)
    assert max(map(words, pieces)) <= 30
    assert all(any(sentence in piece for piece in pieces) for sentence in SENTENCES)


def test_the_end_of_a_long_text_counts() -> None:
    same_start = (CORPUS / "beekeeping-year.md").read_text(encoding="utf-8")[:4000]
    texts = [
        same_start + "\n\n" + ending
        for ending in ("Varroa mites are counted in August. ", "The ferry sank. ")
    ]
    texts = [text + text[-36:] * 20 for text in texts]
    cut_off = load_embedder().embed_documents(texts)
    np.testing.assert_array_equal(cut_off[0], cut_off[1])
    merged = np.array(MergerEmbeddings().embed_documents(texts))
    query = load_embedder().embed_query("Varroa mites are counted in August.")
    assert merged[0] @ query > merged[1] @ query + 0.02


@given(st.permutations(["short", LONG, "", LONG[:500], "x " * 31, "y " * 30]), st.integers(0, 6))
def test_a_vector_depends_on_its_own_text_alone(texts: list[str], count: int) -> None:
    together = wrapping().embed_documents(texts[:count])
    alone = [wrapping().embed_documents([text])[0] for text in texts[:count]]
    np.testing.assert_allclose(together, alone, atol=1e-5) if count else None
    assert len(together) == count


def test_no_texts_need_no_model() -> None:
    source = Recording()
    assert wrapping(source).embed_documents([]) == []
    assert asyncio.run(wrapping(source).aembed_documents([])) == []
    assert source.calls == []


def test_a_text_is_long_from_the_first_token_beyond_the_context() -> None:
    fits, exceeds = "w " * 30, "w " * 31
    vectors = wrapping().embed_documents([fits, exceeds])
    assert vectors[0] == FAKE.embed_query(fits)
    assert vectors[1] != FAKE.embed_query(exceeds)


def test_words_unknown_to_the_model_do_not_spoil_a_text() -> None:
    def forget(rows: list[list[float]]) -> list[list[float]]:
        return [[0.0] * 12 if index == 2 else row for index, row in enumerate(rows)]

    source = Recording(forget)
    (vector,) = wrapping(source).embed_documents([LONG])
    chunks = SentenceChunker(20, words).split(LONG)
    rows = np.array(FAKE.embed_documents([chunk.text for chunk in chunks]))
    kept = [
        unit(row) * chunk.tokens
        for index, (row, chunk) in enumerate(zip(rows, chunks, strict=True))
        if index != 1
    ]
    np.testing.assert_allclose(unit(vector), unit(unit(rows[0]) + unit(np.sum(kept, axis=0))), atol=1e-6)


def test_a_text_without_a_direction_stays_as_the_model_gave_it() -> None:
    source = Recording(lambda rows: [[0.0] * 12 for _ in rows])
    assert wrapping(source).embed_documents(["", LONG]) == [[0.0] * 12] * 2


# Which context, which tokenizer, which chunks


class Transformer:
    """What langchain-huggingface holds: the context and the tokenizer of a sentence-transformers model."""

    max_seq_length = model_max_length = 32

    @property
    def tokenizer(self) -> Any:
        return self

    def __call__(self, text: str, *, add_special_tokens: bool, truncation: bool, verbose: bool) -> Any:
        ends = ["[CLS]", "[SEP]"] if add_special_tokens else []
        tokens = text.split() + ends
        return {"input_ids": tokens[: self.model_max_length] if truncation else tokens}


@pytest.mark.parametrize("name", ["_client", "client", "_model"])
def test_a_sentence_transformers_model_inside_tells_its_context(name: str) -> None:
    source = Recording()
    setattr(source, name, Transformer())
    fits, exceeds = "w " * 30, "w " * 31
    vectors = MergerEmbeddings(source).embed_documents([fits, exceeds])
    assert vectors[0] == FAKE.embed_query(fits)
    assert vectors[1] != FAKE.embed_query(exceeds)


def test_openai_embeddings_tell_their_context() -> None:
    source = Recording()
    source.embedding_ctx_length = 30  # type: ignore[attr-defined]
    MergerEmbeddings(source).embed_documents([LONG])
    assert max(map(words, source.calls[0])) <= 28


@pytest.mark.parametrize("limit", [None, float("inf"), int(1e30), 0])
def test_a_context_that_cannot_be_right_has_to_be_given(limit: Any) -> None:
    source = Recording()
    source.max_seq_length = limit  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"Recording does not tell .* Pass max_tokens=.* and count_tokens="):
        MergerEmbeddings(source)


def test_what_is_passed_wins_over_what_the_model_tells() -> None:
    source = Recording()
    source.max_seq_length = 32  # type: ignore[attr-defined]
    text = "w " * 31
    assert MergerEmbeddings(source, max_tokens=40, count_tokens=words).embed_documents(
        [text]
    ) == FAKE.embed_documents([text])


def test_an_unknown_tokenizer_is_given_a_margin() -> None:
    room = int(60 / UNKNOWN_TOKENIZER_MARGIN)
    texts = ["tide " * room, "tide " * (room + 1)]
    count = load_embedder().count_tokens
    assert [count(text) for text in texts] == [room, room + 1]
    unknown = MergerEmbeddings(FAKE, max_tokens=62).embed_documents(texts)
    known = MergerEmbeddings(FAKE, max_tokens=62, count_tokens=count).embed_documents(texts)
    assert known == FAKE.embed_documents(texts)
    assert unknown[0] == known[0]
    assert unknown[1] != known[1]


def test_chunks_are_smaller_where_the_context_is() -> None:
    source = Recording()
    MergerEmbeddings(source, max_tokens=8, count_tokens=words).embed_documents([LONG])
    assert max(map(words, source.calls[0])) <= 6


def test_a_chunk_beyond_the_context_is_refused() -> None:
    embeddings = wrapping(chunker=SentenceChunker(100, words))
    with pytest.raises(
        InputError, match=r"SentenceChunker\(size=100\) gave .* of 9\d tokens.* 1 to 30 tokens"
    ):
        embeddings.embed_documents([LONG])


def test_a_chunker_without_chunks_is_refused() -> None:
    class Nothing:
        def split(self, text: str) -> list[Chunk]:
            return []

    with pytest.raises(InputError, match="gave 0 chunks"):
        wrapping(chunker=Nothing()).embed_documents([LONG])


@pytest.mark.parametrize("max_tokens", [2, -1, 3.5, "512", True])
def test_a_context_out_of_range_is_refused(max_tokens: Any) -> None:
    with pytest.raises(InputError, match="max_tokens is"):
        MergerEmbeddings(FAKE, max_tokens=max_tokens)


# Errors


@pytest.mark.parametrize("texts", ["one string", None, 7])
def test_a_list_of_texts_is_needed(texts: Any) -> None:
    with pytest.raises(InputError, match=r"A list of texts was expected.*pass \[text\]"):
        wrapping().embed_documents(texts)
    with pytest.raises(InputError, match="A list of texts was expected"):
        wrapping().calibrated(texts)


@pytest.mark.parametrize("text", [None, b"bytes", 7])
def test_a_text_is_a_string(text: Any) -> None:
    with pytest.raises(InputError, match="Text number 1 is a"):
        wrapping().embed_documents(["fine", text])
    with pytest.raises(InputError, match="Text is a"):
        wrapping().embed_query(text)
    with pytest.raises(InputError, match="Text is a"):
        asyncio.run(wrapping().aembed_query(text))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows[:-1], DimensionError, r"Recording returned .* \(\d+, d\) was expected"),
        (
            lambda rows: [row[: 11 + index % 2] for index, row in enumerate(rows)],
            DimensionError,
            "Recording returned no rows",
        ),
        (lambda rows: [[] for _ in rows], DimensionError, "Recording returned an array of shape"),
        (lambda rows: [[float("nan"), *row[1:]] for row in rows], NonFiniteError, "Recording returned NaN"),
    ],
    ids=["too few", "ragged", "no dimension", "NaN"],
)
def test_wrong_answers_of_the_model_are_named(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrapping(Recording(change)).embed_documents(["a", "b", LONG])


def test_a_query_vector_is_checked() -> None:
    with pytest.raises(NonFiniteError, match="Recording"):
        wrapping(Recording(lambda rows: [[float("inf")] * 12 for _ in rows])).embed_query("a")


def test_a_merger_of_another_dimension_is_refused() -> None:
    with pytest.raises(DimensionError, match="384"):
        wrapping(merger=load_merger()).embed_documents([LONG])


def test_a_class_is_no_embedder() -> None:
    with pytest.raises(InputError, match="is a class"):
        MergerEmbeddings(DeterministicFakeEmbedding)


def test_without_langchain_the_message_says_what_to_install() -> None:
    program = "import sys; sys.modules['langchain_core'] = None; import merger_plugins.langchain"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in run.stderr
    assert "pip install 'merger-plugins[langchain]'" in run.stderr


# Async


class AsyncOnly(Recording):
    """Its sync methods are not to be used."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return super().embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0)
        return FAKE.embed_query(text)


async def test_async_reaches_the_models_own_async() -> None:
    embeddings = wrapping(AsyncOnly())
    assert await embeddings.aembed_documents(["short", LONG]) == wrapping().embed_documents(["short", LONG])
    assert await embeddings.aembed_query("short") == FAKE.embed_query("short")


class Encoder:
    """Like a sentence-transformers model: no LangChain methods, and no async."""

    def encode(self, texts: list[str]) -> Any:
        return np.array(FAKE.embed_documents(texts), np.float32)


async def test_other_libraries_embedders_work_in_both_ways() -> None:
    embeddings = wrapping(Encoder())
    texts = ["short", LONG]
    vectors = embeddings.embed_documents(texts)
    assert vectors[0] == Encoder().encode(["short"])[0].tolist()
    assert await embeddings.aembed_documents(texts) == vectors
    assert await embeddings.aembed_query("short") == embeddings.embed_query("short") == vectors[0]


# Calibrated


def test_calibrated_embeddings_send_every_stored_text_through_the_merger() -> None:
    embeddings = wrapping()
    calibrated = embeddings.calibrated([LONG, LONG[::-1], "short", ""])
    merger = calibrated.merger
    assert isinstance(merger, CalibratedMerger)
    assert isinstance(embeddings.merger, MeanMerger)
    raw = FAKE.embed_query("short")
    short, long = calibrated.embed_documents(["short", LONG])
    np.testing.assert_allclose(short, merger.merge([raw]) * np.linalg.norm(raw), rtol=1e-5)
    assert np.abs(unit(short) - unit(raw)).max() > 1e-3

    chunks = SentenceChunker(20, words).split(LONG)
    rows = FAKE.embed_documents([chunk.text for chunk in chunks])
    expected = merger.merge(rows[:1]) + merger.merge(rows, masses=[chunk.tokens for chunk in chunks])
    np.testing.assert_allclose(unit(long), unit(expected), atol=1e-5)
    assert calibrated.embed_query("short") == raw


def test_calibration_uses_the_chunk_vectors_of_each_text() -> None:
    texts = [LONG, LONG[::-1], "short"]
    sample = [
        np.array(FAKE.embed_documents([chunk.text for chunk in SentenceChunker(20, words).split(text)]))
        for text in texts
    ]
    source = Recording()
    calibrated = wrapping(source).calibrated(iter([*texts, " ", ""]))
    assert calibrated.merger.fingerprint == MeanMerger().calibrated(sample).fingerprint
    assert len(source.calls) == 1


def test_calibration_leaves_out_chunks_without_a_direction() -> None:
    def forget(rows: list[list[float]]) -> list[list[float]]:
        return [[0.0] * 12, *rows[1:]]

    without_first = np.array(
        FAKE.embed_documents([chunk.text for chunk in SentenceChunker(20, words).split(LONG)])
    )[1:]
    calibrated = wrapping(Recording(forget)).calibrated([LONG])
    assert calibrated.merger.fingerprint == MeanMerger().calibrated([without_first]).fingerprint


def test_calibration_streams() -> None:
    source = Recording()
    wrapping(source).calibrated(f"{LONG} {number}" for number in range(130))
    assert len(source.calls) == 3


def test_the_bundled_embedders_background_is_used_for_it_and_for_no_other() -> None:
    texts = [
        (CORPUS / name).read_text(encoding="utf-8") for name in ("beekeeping-year.md", "bakery-handbook.md")
    ]
    ours = MergerEmbeddings().calibrated(texts).merger
    others = wrapping().calibrated(texts).merger
    assert isinstance(ours, CalibratedMerger)
    assert isinstance(others, CalibratedMerger)
    assert ours.background is not None
    assert others.background is None


def test_a_calibrated_merger_can_be_saved_and_passed_again(tmp_path: Path) -> None:
    calibrated = wrapping().calibrated([LONG])
    again = wrapping(merger=load_merger(calibrated.merger.save(tmp_path / "merger")))
    assert again.embed_documents([LONG, "short"]) == calibrated.embed_documents([LONG, "short"])


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_calibration_needs_text(texts: list[str]) -> None:
    with pytest.raises(InputError, match="empty"):
        wrapping().calibrated(texts)


# In LangChain


def test_the_constructor_reads_nothing() -> None:
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "socket.connect"):
            opened.append(str(arguments))

    sys.addaudithook(watch)  # stays until the process ends
    MergerEmbeddings()
    wrapping()
    watching = False
    assert opened == []


def test_embeddings_can_be_pickled() -> None:
    texts = ["short", LONG * 3]
    for embeddings in (MergerEmbeddings(), wrapping().calibrated([LONG])):
        assert pickle.loads(pickle.dumps(embeddings)).embed_documents(texts) == embeddings.embed_documents(
            texts
        )


def test_repr_names_what_is_wrapped() -> None:
    assert repr(wrapping()) == "MergerEmbeddings(DeterministicFakeEmbedding, merger=MeanMerger())"


def test_long_documents_are_found_in_a_vector_store() -> None:
    names = ["beekeeping-year.md", "bakery-handbook.md", "lighthouse-restoration.txt"]
    store = InMemoryVectorStore(MergerEmbeddings())
    store.add_texts([(CORPUS / name).read_text(encoding="utf-8") for name in names], ids=names)
    (found,) = store.similarity_search("How long does the sourdough rest before it is baked?", k=1)
    assert found.id == "bakery-handbook.md"
