import asyncio
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import MockEmbedding

from merger_plugins import CalibratedMerger, MeanMerger
from merger_plugins.embedders import load_embedder
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.langchain import MergerEmbeddings
from merger_plugins.llama_index import MergerEmbedding
from tests.llama_index.apps import PlainModel, WordModel, calibrated, documents, nothing_blocks, word_vector

LONG = " ".join(f"Sentence {number} says that {number} and {number} make more." for number in range(40))


def words(text: str) -> int:
    return len(text.split())


def wrapping(model: Any = None, **settings: Any) -> MergerEmbedding:
    """A context of 30 words."""
    settings = {"max_tokens": 32, "count_tokens": words, **settings}
    return MergerEmbedding(model or WordModel(), **settings)


# What comes out


def test_short_texts_and_queries_keep_the_very_numbers_of_the_model() -> None:
    made, model = wrapping(), WordModel()
    for text in ("a tide table", "", " \n "):
        assert made.get_text_embedding(text) == model.get_text_embedding(text)
    assert made.get_query_embedding(LONG) == model.get_query_embedding(LONG)
    assert {type(value) for value in made.get_text_embedding(LONG)} == {float}


def test_long_texts_are_merged_as_in_langchain() -> None:
    class AsLangChain(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [word_vector(text).tolist() for text in texts]

    theirs = MergerEmbeddings(AsLangChain(size=256), max_tokens=32, count_tokens=words)
    expected = theirs.embed_documents([LONG, "short"])
    assert wrapping().get_text_embedding_batch([LONG, "short"]) == expected
    assert expected[0] != word_vector(LONG).tolist()


def test_the_bundled_model_is_the_default() -> None:
    made = MergerEmbedding()
    np.testing.assert_array_equal(
        made.get_query_embedding("a tide table"), load_embedder().embed_query("a tide table")
    )
    assert made.model_name == "merged MiniLMEmbedder"


def test_any_librarys_embeddings_can_be_wrapped() -> None:
    fake = DeterministicFakeEmbedding(size=12)
    assert wrapping(fake).get_text_embedding("short") == fake.embed_documents(["short"])[0]


def test_a_calibrated_embedding_changes_all_texts_and_no_query() -> None:
    made = wrapping().calibrated(document.text for document in documents())
    assert isinstance(made.merger, CalibratedMerger)
    assert made.get_query_embedding("honey") == wrapping().get_query_embedding("honey")
    raw = np.array(wrapping().get_text_embedding("honey"))
    expected = made.merger.merge([raw]) * np.linalg.norm(raw)
    np.testing.assert_allclose(made.get_text_embedding("honey"), expected, rtol=1e-5)


# Several queries


async def test_several_queries_are_merged_by_their_masses() -> None:
    made = wrapping()
    queries = ["the lamp of the tower", "honey"]
    expected = MeanMerger().merge([word_vector(query) for query in queries], masses=[5, 1])
    np.testing.assert_allclose(made.get_agg_embedding_from_queries(queries), expected, atol=1e-6)
    np.testing.assert_allclose(await made.aget_agg_embedding_from_queries(queries), expected, atol=1e-6)


async def test_one_query_keeps_its_vector() -> None:
    made = wrapping()
    assert made.get_agg_embedding_from_queries(["honey"]) == word_vector("honey").tolist()
    assert await made.aget_agg_embedding_from_queries(["honey"]) == word_vector("honey").tolist()


def test_the_hosts_own_aggregation_comes_before_ours() -> None:
    assert wrapping().get_agg_embedding_from_queries(["a", "b"], agg_fn=lambda rows: rows[1]) == (
        word_vector("b").tolist()
    )


def test_the_merger_of_queries_can_be_chosen() -> None:
    merger = calibrated()
    made = wrapping(query_merger=merger)
    expected = merger.merge([word_vector("a"), word_vector("b")])
    np.testing.assert_allclose(made.get_agg_embedding_from_queries(["a", "b"]), expected, atol=1e-6)


def test_no_queries_are_refused() -> None:
    with pytest.raises(EmptyInputError):
        wrapping().get_agg_embedding_from_queries([])


# Asynchronous


async def test_coroutines_of_the_model_are_awaited() -> None:
    model = WordModel()
    made = wrapping(model)
    texts = [LONG, "short"]
    assert await made.aget_text_embedding_batch(texts) == made.get_text_embedding_batch(texts)
    assert model.asked["text awaited"] == model.asked["text"] > 2
    await made.aget_query_embedding("honey")
    assert model.asked["query awaited"] == 1


async def test_a_model_without_coroutines_works_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    made = wrapping(PlainModel())
    expected = made.get_text_embedding_batch([LONG, "short"])
    watched = [(PlainModel, "_get_text_embedding"), (PlainModel, "_get_query_embedding")]
    with nothing_blocks(monkeypatch, *watched, (MeanMerger, "merge_many")) as seen:
        assert await made.aget_text_embedding_batch([LONG, "short"]) == expected
        await made.aget_query_embedding("honey")
        await made.aget_text_embedding("short")
    assert seen["PlainModel._get_query_embedding"] == 1
    assert seen["MeanMerger.merge_many"] == 2


async def test_many_at_once() -> None:
    made = wrapping()
    texts = [f"{LONG} {number}" for number in range(32)]
    assert await asyncio.gather(*(made.aget_text_embedding(text) for text in texts)) == (
        made.get_text_embedding_batch(texts)
    )


# Bad input


def test_a_model_that_does_not_tell_its_context_is_refused() -> None:
    with pytest.raises(InputError, match="max_tokens="):
        MergerEmbedding(WordModel())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="no embedder"):
        MergerEmbedding(object(), max_tokens=32)


class HalfWay(WordModel):
    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return super()._get_text_embeddings(texts)[:-1]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._get_text_embeddings(texts)


async def test_a_model_that_answers_for_a_part_is_refused() -> None:
    made = wrapping(HalfWay(embed_batch_size=100))
    with pytest.raises(DimensionError, match="HalfWay returned"):
        made.get_text_embedding_batch([LONG, "short"])
    with pytest.raises(DimensionError, match="HalfWay returned"):
        await made.aget_text_embedding_batch([LONG, "short"])


class Failing(WordModel):
    def _get_text_embedding(self, text: str) -> list[float]:
        if self.asked["text"] == 2:
            raise StopIteration
        return super()._get_text_embedding(text)

    _aget_text_embedding = PlainModel._aget_text_embedding


async def test_a_model_that_fails_half_way_is_heard() -> None:
    with pytest.raises((StopIteration, RuntimeError)):
        wrapping(Failing()).get_text_embedding(LONG)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(wrapping(Failing()).aget_text_embedding(LONG), 10)


# Dictionaries and pickles


def test_a_dictionary_brings_it_back() -> None:
    made = MergerEmbedding(MockEmbedding(embed_dim=8), max_tokens=64, query_merger="mean", embed_batch_size=3)
    data = json.loads(json.dumps(made.to_dict()))
    again = MergerEmbedding.from_dict(data)
    assert again.to_dict() == made.to_dict()
    assert again.get_text_embedding(LONG * 9) == made.get_text_embedding(LONG * 9)
    bundled = MergerEmbedding.from_dict(json.loads(MergerEmbedding().to_json()))
    assert bundled.get_query_embedding("honey") == MergerEmbedding().get_query_embedding("honey")


def test_what_a_dictionary_cannot_hold_is_asked_for() -> None:
    made = wrapping()
    data = made.to_dict()
    with pytest.raises(ValueError, match=r"from_dict\(data, embed_model="):
        MergerEmbedding.from_dict(data)
    with pytest.raises(ValueError, match=r"from_dict\(data, count_tokens="):
        MergerEmbedding.from_dict(data, embed_model=WordModel())
    again = MergerEmbedding.from_dict(data, embed_model=WordModel(), count_tokens=words)
    assert again.get_text_embedding(LONG) == made.get_text_embedding(LONG)


def test_it_is_pickled_with_everything() -> None:
    made = wrapping(merger=calibrated())
    before = made.get_text_embedding(LONG)
    again = pickle.loads(pickle.dumps(made))
    assert again.get_text_embedding(LONG) == before
    with pytest.raises(InputError, match="count_tokens cannot"):
        pickle.dumps(wrapping(count_tokens=lambda text: len(text)))


def test_without_the_host_the_message_says_what_to_install() -> None:
    program = "import sys; sys.modules['llama_index'] = None; import merger_plugins.llama_index"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd())
    assert run.returncode == 1
    assert "pip install 'merger-plugins[llama-index]'" in run.stderr
