"""Embedding objects of real hosts, and objects that answer wrongly."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from merger_plugins.embedders import MiniLMEmbedder, as_embedder
from merger_plugins.errors import DimensionError, InputError, MergerError, NonFiniteError

TEXTS = ["one", "three", "seventeen"]


def vector(text: str, sign: int = 1) -> list[float]:
    """A vector that tells texts, and documents from queries, apart."""
    return [sign * len(text), 1.0]


EXPECTED = np.array([vector(text) for text in TEXTS], np.float32)


def check(source: Any, query_sign: int = -1) -> None:
    embedder = as_embedder(source)
    documents = embedder.embed_documents(tuple(TEXTS))
    query = embedder.embed_query("three")
    assert documents.dtype == query.dtype == np.float32
    np.testing.assert_array_equal(documents, EXPECTED)
    np.testing.assert_array_equal(query, np.array(vector("three", query_sign), np.float32))


def test_langchain_embeddings() -> None:
    host = pytest.importorskip("langchain_core.embeddings", reason="install the extra langchain")

    class Lengths(host.Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            assert isinstance(texts, list)
            return [vector(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return vector(text, -1)

    check(Lengths())


def test_llama_index_embedding() -> None:
    host = pytest.importorskip("llama_index.core.embeddings", reason="install the extra llama-index")

    class Lengths(host.BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return vector(text)

        def _get_query_embedding(self, query: str) -> list[float]:
            return vector(query, -1)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return vector(query, -1)

    check(Lengths(embed_batch_size=2))
    mock = as_embedder(host.MockEmbedding(embed_dim=8))
    np.testing.assert_array_equal(mock.embed_documents(["a", "b"]), np.full((2, 8), 0.5))


class SentenceEncoder:
    """The signature of sentence-transformers' SentenceTransformer.encode."""

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
    ) -> np.ndarray:
        rows = np.array([vector(text, -1 if prompt_name == "query" else 1) for text in sentences])
        return rows[0] if isinstance(sentences, str) else rows


class AsymmetricEncoder(SentenceEncoder):
    """The same with the two methods of version 5."""

    def encode_document(self, sentences: str | Sequence[str]) -> np.ndarray:
        return self.encode(sentences)

    def encode_query(self, sentences: str | Sequence[str]) -> np.ndarray:
        return self.encode(sentences, prompt_name="query")


def test_sentence_transformers_encode() -> None:
    check(SentenceEncoder(), query_sign=1)


def test_sentence_transformers_query_and_document_prompts() -> None:
    check(AsymmetricEncoder())


class Own:
    """Our own protocol, answering with what it is given."""

    def __init__(self, documents: Any = None, query: Any = None) -> None:
        self.documents, self.query = documents, query

    def embed_documents(self, texts: list[str]) -> Any:
        texts.sort()
        return self.documents

    def embed_query(self, text: str) -> Any:
        return self.query


def test_own_protocol() -> None:
    check(Own(EXPECTED, EXPECTED[1] * [-1, 1]))


def test_host_cannot_change_the_callers_texts() -> None:
    texts = ["z", "a"]
    as_embedder(Own(np.ones((2, 3)))).embed_documents(texts)
    assert texts == ["z", "a"]


def test_what_is_ours_is_returned_as_it_is() -> None:
    bundled = MiniLMEmbedder()
    assert as_embedder(bundled) is bundled
    wrapped = as_embedder(Own())
    assert as_embedder(wrapped) is wrapped


@pytest.mark.parametrize("source", [SentenceEncoder(), AsymmetricEncoder()])
def test_wrapped_embedder_is_picklable(source: Any) -> None:
    check(
        pickle.loads(pickle.dumps(as_embedder(source))),
        query_sign=-1 if source.__class__ is AsymmetricEncoder else 1,
    )


def test_no_texts_do_not_reach_the_host() -> None:
    assert as_embedder(Own("never looked at")).embed_documents([]).shape == (0, 0)


def test_one_string_is_not_a_sequence_of_texts() -> None:
    with pytest.raises(InputError, match=r"pass \[text\]"):
        as_embedder(SentenceEncoder()).embed_documents("text")


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (np.ones((2, 4)), DimensionError, r"shape \(2, 4\), where \(3, d\)"),
        (np.ones(3), DimensionError, r"shape \(3,\), where \(3, d\)"),
        (np.ones((3, 0)), DimensionError, r"shape \(3, 0\)"),
        (np.ones((3, 4, 2)), DimensionError, r"shape \(3, 4, 2\)"),
        ([[1.0], [1.0, 2.0], [1.0]], DimensionError, "one length"),
        ([["a"], ["b"], ["c"]], DimensionError, "no array of numbers"),
        (None, DimensionError, "Own returned"),
        ([[1, 2], [np.nan, 2], [1, 2]], NonFiniteError, "text number 1"),
        ([[1, 2], [1, 2], [1, np.inf]], NonFiniteError, "text number 2"),
        ([[1e39, 2], [1, 2], [1, 2]], NonFiniteError, "text number 0"),
    ],
)
def test_wrong_document_vectors(answer: Any, error: type[MergerError], reason: str) -> None:
    with pytest.raises(error, match=rf"The embedder Own returned.*{reason}|{reason}") as caught:
        as_embedder(Own(documents=answer)).embed_documents(TEXTS)
    assert "Own" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (np.ones((1, 4)), DimensionError),
        (np.float32(1), DimensionError),
        ([], DimensionError),
        ([1.0, np.nan], NonFiniteError),
    ],
)
def test_wrong_query_vector(answer: Any, error: type[MergerError]) -> None:
    with pytest.raises(error, match="The embedder Own"):
        as_embedder(Own(query=answer)).embed_query("text")


def test_tokenizer_is_no_embedder() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="install the extra cpu")
    with pytest.raises(InputError, match="Tokenizer is no embedder"):
        as_embedder(tokenizers.Tokenizer(tokenizers.models.BPE()))


@pytest.mark.parametrize("source", ["all-MiniLM-L6-v2", None, 3, [0.5], vector])
def test_other_objects_are_refused_with_the_list_of_what_is_accepted(source: Any) -> None:
    with pytest.raises(InputError, match=r"LangChain.*LlamaIndex.*sentence-transformers"):
        as_embedder(source)


def test_class_instead_of_object() -> None:
    with pytest.raises(InputError, match=r"is a class; pass an object of it: SentenceEncoder\("):
        as_embedder(SentenceEncoder)
