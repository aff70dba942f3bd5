"""Each way of searching against the same scores worked out with numpy."""

import numpy as np
import pytest

pytest.importorskip("qdrant_client")

from merger_plugins import CalibratedMerger, MeanMerger
from merger_plugins.chunking import Chunk
from merger_plugins.demo.comparison import compare_documents, compare_turns
from merger_plugins.demo.methods import METHODS, Corpus, Methods
from merger_plugins.demo.questions import ChatQuestion, DocumentQuestion
from merger_plugins.errors import EmptyInputError, InputError

DIMENSION = 16
LENGTHS = (3, 14, 25)


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(4)
    vectors = [
        unit(rng.standard_normal(DIMENSION) + rng.standard_normal((n, DIMENSION))).astype(np.float32)
        for n in LENGTHS
    ]
    chunks = [[Chunk(f"c{i}", 3 * i, 3 * i + 2, 1 + i % 4) for i in range(n)] for n in LENGTHS]
    beginnings = unit(rng.standard_normal((len(LENGTHS), DIMENSION))).astype(np.float32)
    return Corpus(["a", "b", "c"], chunks, vectors, beginnings)


@pytest.fixture(scope="module")
def merger():
    return CalibratedMerger(dimension=DIMENSION)


@pytest.fixture(scope="module")
def found(corpus, merger):
    query = unit(np.random.default_rng(5).standard_normal(DIMENSION)).astype(np.float32)
    with Methods(corpus, merger) as methods:
        return query, methods.search(query), methods.merger, {name: methods.vectors(name) for name in METHODS}


def best(scores):
    bounds = np.cumsum(LENGTHS)[:-1]
    return [part.max() for part in np.split(scores, bounds)]


def test_every_method_scores_everything(found):
    _, scores, _, _ = found
    assert list(scores) == list(METHODS)
    for one in scores.values():
        assert one.documents.shape == (3,)
        assert np.isfinite(one.documents).all()
        if one.chunks is not None:
            assert one.chunks.shape == (sum(LENGTHS),)
            assert np.isfinite(one.chunks).all()


def test_the_merger_was_calibrated_on_the_corpus(found, corpus, merger):
    expected = merger.calibrated(corpus.vectors)
    assert found[2].statistics.vectors == sum(LENGTHS)
    for vectors in corpus.vectors:
        assert found[2].merge(vectors) == pytest.approx(expected.merge(vectors), abs=1e-5)


def test_documents(found, corpus):
    query, scores, calibrated, _ = found
    assert scores["truncation"].documents == pytest.approx(corpus.beginnings @ query, abs=1e-5)
    for name, one in (("mean", MeanMerger()), ("root", calibrated)):
        roots = one.merge_many(corpus.vectors, masses=corpus.masses)
        assert scores[name].documents == pytest.approx(roots @ query, abs=1e-4)


def test_chunks(found, corpus):
    query, scores, calibrated, _ = found
    raw = np.concatenate(corpus.vectors) @ query
    assert scores["chunks"].chunks == pytest.approx(raw, abs=1e-5)
    assert scores["chunks"].documents == pytest.approx(best(raw), abs=1e-5)
    pairs = zip(corpus.vectors, corpus.masses, strict=True)
    inside = np.concatenate([calibrated.contextualize(v, masses=m) for v, m in pairs]) @ query
    assert scores["contextual"].chunks == pytest.approx(inside, abs=1e-4)
    assert scores["contextual"].documents == pytest.approx(best(inside), abs=1e-4)


@pytest.mark.parametrize(("fused", "alone"), [("chunks+mean", "chunks"), ("chunks+root", "chunks")])
def test_fused_scores_add_to_those_of_chunks(found, fused, alone):
    _, scores, _, _ = found
    added = scores[fused].chunks - scores[alone].chunks
    assert np.ptp(added) > 0.01
    assert np.abs(added).max() <= 0.5 + 1e-5


def test_storage(found):
    _, _, _, vectors = found
    assert vectors["root"] == vectors["mean"] == vectors["truncation"] == 1
    assert vectors["chunks"] == vectors["contextual"] == pytest.approx(sum(LENGTHS) / 3)
    # Sections of ten: of 14 chunks a whole one and a rest, of 25 two and a rest; and three roots.
    assert vectors["chunks+root"] == pytest.approx((sum(LENGTHS) + 2 + 3 + 3) / 3)


def test_an_empty_corpus(merger):
    empty = Corpus([], [], [], np.zeros((0, DIMENSION), np.float32))
    with pytest.raises(EmptyInputError):
        Methods(empty, merger)


class Questioner:
    """Embeds the questions of these tests, whose texts name a vector."""

    def __init__(self, **vectors):
        self.vectors = vectors

    def embed_query(self, text):
        return self.vectors[text]

    def count_tokens(self, text):
        return len(text.split())


def test_comparing_documents(corpus, merger):
    texts = {
        "a": "c0 c1 c2",
        "b": "".join(f"c{i} " for i in range(14)),
        "c": "".join(f"c{i} " for i in range(25)),
    }
    corpus = Corpus(
        corpus.ids,
        [[Chunk(c.text, texts[n].index(c.text), texts[n].index(c.text) + len(c.text), c.tokens) for c in own]
         for n, own in zip(corpus.ids, corpus.chunks, strict=True)],
        corpus.vectors,
        corpus.beginnings,
    )  # fmt: skip
    questions = [DocumentQuestion("second", "b", "c7"), DocumentQuestion("third", "c", "c23")]
    asked = Questioner(second=corpus.vectors[1][7], third=corpus.vectors[2][23])
    comparison = compare_documents(corpus, texts, questions, merger, asked)
    for row in comparison.questions:
        assert (row.ranks["chunks"].document, row.ranks["chunks"].passage) == (1, 1)
        assert row.ranks["root"].passage is None
    assert comparison.summary["chunks"].passage == 1.0
    assert comparison.summary["root"].passage is None
    assert comparison.summary["root"].kilobytes == pytest.approx(4 * DIMENSION / 1000)
    with pytest.raises(InputError, match="does not hold the passage"):
        compare_documents(corpus, texts, [DocumentQuestion("second", "a", "c7")], merger, asked)


def test_comparing_turns(merger):
    vectors = unit(np.random.default_rng(6).standard_normal((30, DIMENSION))).astype(np.float32)
    turns = [(f"t{i}", f"Ann: turn number {i}") for i in range(30)]
    asked = Questioner(same=vectors[12], near=vectors[13])
    comparison = compare_turns(
        turns, vectors, [ChatQuestion("same", "t12"), ChatQuestion("near", "t12")], merger, asked
    )
    same, near = comparison.questions
    assert same.raw == same.contextual == 1
    assert near.raw > 1
    assert near.contextual <= near.raw
    assert comparison.reciprocal["raw"] == pytest.approx((1 + 1 / near.raw) / 2)
