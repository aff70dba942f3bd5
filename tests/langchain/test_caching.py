"""`MergerEmbeddings` inside LangChain's own cache of embeddings."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.stores import InMemoryByteStore

from merger_plugins import load_merger
from merger_plugins.langchain import MergerEmbeddings

caching = pytest.importorskip("langchain_classic.embeddings", reason="it needs LangChain 1.0")
storage = pytest.importorskip("langchain_classic.storage")

FAKE = DeterministicFakeEmbedding(size=12)
LONG = " ".join(f"Sentence {number} says that {number} and {number} make more." for number in range(40))
TEXTS = ["short", LONG, "", LONG.upper()]


class Counting(Embeddings):
    """FAKE, with a count of texts, and coroutines of its own."""

    def __init__(self) -> None:
        self.texts = self.queries = self.awaited = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return FAKE.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self.queries += 1
        return FAKE.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.awaited += 1
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        self.awaited += 1
        return self.embed_query(text)


def merging(source: Embeddings = FAKE, **settings: Any) -> MergerEmbeddings:
    """A context of 30 words."""
    return MergerEmbeddings(source, max_tokens=32, count_tokens=lambda text: len(text.split()), **settings)


def cached(embeddings: MergerEmbeddings, store: Any, **settings: Any) -> Any:
    """As the README tells to."""
    return caching.CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        store,
        namespace=f"fake-{embeddings.merger.fingerprint}",
        key_encoder="sha256",
        **settings,
    )


def keys(store: Any) -> Sequence[str]:
    return list(store.yield_keys())


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    return InMemoryByteStore() if request.param == "memory" else storage.LocalFileStore(tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [None, 1])
def test_what_is_cached_is_what_was_embedded(store, batch_size):
    source = Counting()
    embeddings = cached(merging(source), store, batch_size=batch_size)
    fresh = merging().embed_documents(TEXTS)
    first = embeddings.embed_documents(TEXTS)
    pieces = source.texts
    assert pieces > len(TEXTS)  # the chunks of the long ones
    again = embeddings.embed_documents([*TEXTS, "new"])
    assert source.texts == pieces + 1
    for vector, expected, kept in zip(first, fresh, again, strict=False):
        assert vector == pytest.approx(expected, abs=1e-6)
        assert vector == kept  # JSON keeps every number
    assert len(keys(store)) == len(TEXTS) + 1


async def test_awaited_by_the_models_own_coroutines(store):
    source = Counting()
    embeddings = cached(merging(source), store)
    first = await embeddings.aembed_documents(TEXTS)
    assert source.awaited == 1
    assert await embeddings.aembed_documents(TEXTS) == first == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query("short") == FAKE.embed_query("short")
    assert source.awaited == 2


def test_another_merger_has_other_keys(store):
    plain = merging()
    calibrated, other = plain.calibrated([LONG]), plain.calibrated([LONG.upper(), "short"])
    made = [cached(one, store).embed_documents(TEXTS) for one in (plain, calibrated, other)]
    assert len(keys(store)) == 3 * len(TEXTS)
    for one, vectors in zip((plain, calibrated, other), made, strict=True):
        assert cached(one, store).embed_documents(TEXTS) == vectors
        assert vectors == [pytest.approx(vector, abs=1e-6) for vector in one.embed_documents(TEXTS)]
    assert made[0][1] != made[1][1] != made[2][1]


def test_a_saved_merger_finds_its_vectors_again(store, tmp_path):
    calibrated = merging().calibrated([LONG])
    vectors = cached(calibrated, store).embed_documents(TEXTS)
    source = Counting()
    again = merging(source, merger=load_merger(calibrated.merger.save(tmp_path / "merger")))
    assert cached(again, store).embed_documents(TEXTS) == vectors
    assert source.texts == 0


def test_questions_have_a_cache_of_their_own(store):
    """The long text is one vector as a document, and another as a question."""
    source = Counting()
    embeddings = cached(merging(source), store, query_embedding_cache=InMemoryByteStore())
    (document,) = embeddings.embed_documents([LONG])
    for _ in range(2):
        assert embeddings.embed_query(LONG) == FAKE.embed_query(LONG) != document
    assert source.queries == 1
    assert embeddings.embed_documents([LONG]) == [document]


def test_a_model_that_fails_half_way_leaves_what_was_finished(store):
    class Failing(Counting):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            if texts[0].startswith("SENTENCE"):
                raise ConnectionError("no network")
            return super().embed_documents(texts)

    with pytest.raises(ConnectionError, match="no network"):
        cached(merging(Failing()), store, batch_size=1).embed_documents(TEXTS)
    assert len(keys(store)) == 3
    rest, alone = Counting(), Counting()
    vectors = cached(merging(rest), store, batch_size=1).embed_documents(TEXTS)
    assert vectors == [pytest.approx(vector, abs=1e-6) for vector in merging().embed_documents(TEXTS)]
    merging(alone).embed_documents(TEXTS[-1:])
    assert rest.texts == alone.texts
