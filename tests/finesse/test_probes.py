import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from merger_plugins import load_embedder
from merger_plugins.errors import DocumentError, InputError, ZeroVectorError
from merger_plugins.finesse.probes import (
    Article,
    choose_probes,
    embed_probes,
    mean_cosine,
    read_articles,
)
from tests.finesse.articles import WordEmbedder, articles, count_words, embedded, some_probes


def test_one_article_gives_one_probe_of_its_first_tokens() -> None:
    pool = articles(40)
    probes = choose_probes(pool, 30, tokens=7, count_tokens=count_words)
    text_of = {article.id: article for article in pool}
    assert len(set(probes.ids)) == len(probes) == 30
    for text, identity, language in zip(probes.texts, probes.ids, probes.languages, strict=True):
        assert text == " ".join(text_of[identity].text.split()[:7])
        assert language == text_of[identity].language
    assert {"en", "ko", "zh"} == set(probes.languages[:12])  # shuffled


def test_the_draw_depends_on_seed_and_texts_alone() -> None:
    pool = articles(40)
    first = choose_probes(pool, 20, tokens=7, count_tokens=count_words)
    assert choose_probes(reversed(pool), 20, tokens=7, count_tokens=count_words) == first
    other = choose_probes(pool, 20, tokens=7, count_tokens=count_words, seed=1)
    assert other.ids != first.ids
    assert other.revision != first.revision
    # More probes begin with the same ones.
    assert choose_probes(pool, 30, tokens=7, count_tokens=count_words).ids[:20] == first.ids


def test_too_few_independent_articles() -> None:
    pool = articles(12)
    doubles = [Article("copy", "en", pool[0].text.upper()), Article("other end", "ko", pool[1].text + " end")]
    short = [Article("short", "en", "w1 w2")]
    message = (
        r"13 independent articles are needed, and there are 12 \(4 en, 4 ko, 4 zh\) among 15 read: "
        "2 repeat another one, 1 have fewer than 7 tokens. Name more texts"
    )
    with pytest.raises(InputError, match=message):
        choose_probes([*pool, *doubles, *short], 13, tokens=7, count_tokens=count_words)
    with pytest.raises(InputError, match=r"there are 4 \(4 ko\)"):
        choose_probes(pool, 5, tokens=7, count_tokens=count_words, languages="ko")
    with pytest.raises(InputError, match=r"there are 0 \(none\)"):
        choose_probes([], 5)
    with pytest.raises(InputError, match="count is 0"):
        choose_probes(pool, 0)


def test_tokens_are_those_of_the_bundled_embedder() -> None:
    count = load_embedder().count_tokens
    english = "Unforeseeable thunderstorms interrupted the archaeologists' painstaking excavations. " * 20
    japanese = "発掘調査は雷雨のために中断され、考古学者たちは天幕の下で待った。" * 20
    probes = choose_probes([Article("1", "en", english), Article("2", "ja", japanese)], 2, tokens=50)
    for text, language in zip(probes.texts, probes.languages, strict=True):
        assert 40 <= count(text) <= 50
        if language == "en":
            assert english.startswith(text + " ")  # words stay whole


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = embedded(12).vectors
    pairs = [float(vectors[i] @ vectors[j]) for i in range(12) for j in range(12) if i != j]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_dependent_texts_are_warned_of() -> None:
    texts = [f"The pump of floor {n} is serviced every {n} weeks by a technician." for n in range(3, 9)]
    probes = choose_probes([Article(str(n), "en", text) for n, text in enumerate(texts)], 6, tokens=10)
    with pytest.warns(UserWarning, match="mean cosine between probes is 0.[4-9]"):
        found = embed_probes(probes)
    assert not found.independent
    assert found.context == 512
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedded(40).independent


def test_vectors_of_any_length_are_normalised() -> None:
    plain, scaled = embedded(12), embedded(12, embedder=WordEmbedder(scale=70.0))
    np.testing.assert_allclose(np.linalg.norm(scaled.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(scaled.vectors, plain.vectors, atol=1e-6)
    assert plain.fingerprint == WordEmbedder.fingerprint
    assert plain.context == WordEmbedder.max_seq_length


def test_vectors_are_kept_between_runs(tmp_path: Path) -> None:
    probes, embedder = some_probes(12), WordEmbedder()
    first = embed_probes(probes, embedder, folder=tmp_path)
    embedder.seen.clear()
    again = embed_probes(probes, embedder, folder=tmp_path)
    assert not embedder.seen
    np.testing.assert_array_equal(again.vectors, first.vectors)
    embed_probes(probes, embedder, folder=tmp_path, fingerprint="another model")
    assert embedder.seen == list(probes.texts)


def test_an_embedder_that_tells_nothing_apart() -> None:
    class Constant(WordEmbedder):
        def embed_query(self, text: str) -> np.ndarray:
            return np.arange(1, 9) + len(text) * 1e-9

    with pytest.raises(InputError, match="vectors of 12 different texts are all the same"):
        embedded(12, embedder=Constant())

    class Zero(WordEmbedder):
        def embed_query(self, text: str) -> np.ndarray:
            return np.zeros(8)

    with pytest.raises(ZeroVectorError, match="the embedder's answer row 0"):
        embedded(12, embedder=Zero())
    with pytest.raises(InputError, match="at least 2"):
        embed_probes(some_probes(1), WordEmbedder())


def test_reading(tmp_path: Path) -> None:
    rows = [{"id": 5, "lang": "de", "text": "Eins."}, {"text": "Zwei."}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    expected = [Article("5", "de", "Eins."), Article("a.jsonl.gz:2", "", "Zwei.")]
    assert list(read_articles([tmp_path])) == list(read_articles([tmp_path / "a.jsonl.gz"])) == expected
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DocumentError, match=r'b\.jsonl, line 1: "text" is a number \(3\), where a text'):
        list(read_articles([tmp_path / "b.jsonl"]))
    for text, message in [
        (b'{"text": "a"}\n\n{"text": \n', r"b\.jsonl, line 3: no JSON \(Expecting value at character 10\)"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"b\.jsonl, after line \d: no UTF-8"),
        (b"[" * 100_000, r"b\.jsonl, line 1: no JSON \(too many brackets"),
    ]:
        (tmp_path / "b.jsonl").write_bytes(text)
        with pytest.raises(DocumentError, match=message):
            list(read_articles([tmp_path / "b.jsonl"]))
    (tmp_path / "b.jsonl").write_text('\n{"text": "Eins."}\n  \n')
    assert list(read_articles([tmp_path / "b.jsonl"])) == [Article("b.jsonl:2", "", "Eins.")]
    with pytest.raises(DocumentError, match="cannot be read"):
        list(read_articles([tmp_path / "none.jsonl"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DocumentError, match=r"holds no \.jsonl"):
        list(read_articles([tmp_path / "empty"]))
