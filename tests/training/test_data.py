"""Texts, shards and batches, on an embedder that needs no model."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from merger_plugins.errors import DocumentError, InputError, TrainingError
from merger_plugins.training.config import FiveTwelveToOne, SelfSupervised, TenToOne
from merger_plugins.training.data.articles import Article, choose_articles, read_articles
from merger_plugins.training.data.bases import Base, open_base
from merger_plugins.training.data.batches import Batches
from merger_plugins.training.data.corpus import Corpus
from merger_plugins.training.data.pieces import random_tree, single_tokens
from merger_plugins.training.data.shards import ShardSettings, ShardWriter, no_space, read_shard, texts_of
from tests.training import toy

SETTINGS = ShardSettings(chunk_tokens=20, tree_tokens=24, articles_per_shard=8)


def articles(count: int, language: str = "en", start: int = 0) -> list[Article]:
    return [
        Article(f"{language}{i}", language, f"About {i}", toy.article(i)) for i in range(start, start + count)
    ]


def toy_base() -> Base:
    return open_base(toy.Toy(), max_tokens=toy.CONTEXT + 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    writer = ShardWriter(tmp_path_factory.mktemp("shards"), toy_base(), SETTINGS, seed=0)
    return Corpus.load(writer.write([*articles(12), *articles(8, "de", 100)]))


# -- texts -------------------------------------------------------------------------------------------------


def test_files_folders_and_datasets_give_the_same_texts(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "title": f"T{i}", "lang": "en", "text": f"Text {i} {'x' * i}"} for i in range(1, 4)
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "plain.jsonl").write_text(lines)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write(lines)
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    found = [list(read_articles([tmp_path / name])) for name in ("plain.jsonl", "packed.jsonl.gz", "saved")]
    assert found[0] == found[1] == found[2]
    assert [article.text for article in found[0]] == [row["text"] for row in rows]

    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden.txt").write_text("no")
    (folder / "a.md").write_text("# Lighthouses\n\nThey shine.")
    (folder / "sub" / "b.txt").write_text("Это текст без языка.")
    notes = {article.id: article for article in read_articles([folder])}
    assert notes["a.md"].title == "Lighthouses"
    assert notes["sub/b.txt"].language == "cyrillic"
    assert set(notes) == {"a.md", "sub/b.txt"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [('{"text": "a"}\n{"txt": "b"}', 'line 2: expected an object with a "text"'), ("{", "line 1: not JSON")],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(DocumentError, match=complaint):
        list(read_articles([tmp_path / "bad.jsonl"]))
    with pytest.raises(DocumentError, match="no such file"):
        list(read_articles([tmp_path / "missing"]))


def test_doubles_are_left_out_and_languages_are_balanced() -> None:
    many, few = articles(60), articles(12, "de", 100)
    again = replace(many[3], id="again", text=many[3].text.upper().replace(" ", "  "))
    mostly = replace(many[4], id="mostly", text=many[4].text + "\n\nAnd one new paragraph.")
    short = Article("short", "en", "", "Too short.")
    chosen = choose_articles([*many, *few, again, mostly, short], seed=1, max_articles=30)
    assert (chosen.read, chosen.doubles, chosen.short) == (75, 2, 1)
    every = [*chosen.training, *chosen.held_out]
    assert len(every) == len({article.key for article in every}) == 30
    german = sum(article.language == "de" for article in every)
    assert german == round(30 * 12**0.5 / (12**0.5 + 60**0.5))  # 9, where proportion would give 5
    half = chosen.training[: len(chosen.training) // 2]
    assert abs(sum(a.language == "de" for a in half) / len(half) - german / 30) < 0.1

    backwards = choose_articles([*few, *reversed(many)], seed=1, max_articles=30)
    assert {a.id for a in backwards.held_out} == {a.id for a in chosen.held_out}
    other = choose_articles([*many, *few], seed=2, max_articles=30)
    assert {a.id for a in other.training} != {a.id for a in chosen.training}


def test_too_few_texts() -> None:
    with pytest.raises(InputError, match="9 texts are left"):
        choose_articles(articles(9), seed=0)


# -- the embedder ------------------------------------------------------------------------------------------


def test_an_embedder_by_import_path() -> None:
    assert open_base("tests.training.toy:embeddings", max_tokens=132).dimension == toy.DIMENSION
    assert open_base("tests.training.toy:make", max_tokens=132).embed(["a b"]).shape == (1, toy.DIMENSION)
    with pytest.raises(InputError, match="does not tell how many tokens"):
        open_base("tests.training.toy:embeddings")
    with pytest.raises(InputError, match="cannot be imported"):
        open_base("tests.training.toy:nothing", max_tokens=132)
    with pytest.raises(InputError, match="There is no embedder 'nothing'"):
        open_base("nothing")
    assert open_base().room == 510


# -- pieces and trees --------------------------------------------------------------------------------------


def test_pieces_are_single_tokens_that_cover_the_text() -> None:
    base = open_base()
    text = "Zwölf Leuchttürme, unbelievably 42.5!"
    pieces = single_tokens(text, base.count_tokens)
    assert "".join(text[a:b] for a, b in pieces) == text.replace(" ", "")
    assert all(base.count_tokens(text[a:b]) == 1 for a, b in pieces)
    assert len(pieces) > len(text.split())


def test_a_random_tree_divides_every_node_among_its_children() -> None:
    rng = np.random.default_rng(0)
    for pieces in (2, 3, 17, 200):
        tree = random_tree(pieces, rng)
        assert (tree.start[0], tree.stop[0], tree.parent[0]) == (0, pieces, -1)
        for node in np.flatnonzero(tree.stop - tree.start > 1):
            children = np.flatnonzero(tree.parent == node)
            assert 2 <= len(children) <= 10
            edges = [int(tree.start[node]), *tree.stop[children].tolist()]
            assert tree.start[children].tolist() == edges[:-1]
            assert edges[-1] == tree.stop[node]


# -- shards ------------------------------------------------------------------------------------------------


def test_shards_hold_what_the_embedder_gives(corpus: Corpus) -> None:
    base = toy_base()
    texts = texts_of([article for article in articles(12) if article.id == "en5"], base, SETTINGS, seed=0)
    number = corpus.ids.index("en5")
    rows = slice(corpus.articles[number], corpus.articles[number + 1])
    np.testing.assert_allclose(corpus.chunks[rows], base.embed(texts.chunks), atol=1e-3)
    windows = corpus.windows[corpus.window_article == number]
    np.testing.assert_allclose(windows, base.embed(texts.windows), atol=1e-3)
    assert all(base.count_tokens(window) <= base.room for window in texts.windows)
    for text, (start, count) in zip(texts.windows, texts.window_spans, strict=True):
        parts = texts.chunks[start : start + count]
        assert "".join(text.split()) == "".join("".join(parts).split())  # neighbours, in order
    nodes = corpus.nodes[corpus.node_article == number]
    np.testing.assert_allclose(nodes, base.embed(texts.nodes), atol=1e-3)
    queries = corpus.queries[corpus.query_article == number]
    np.testing.assert_allclose(queries, base.embed(texts.queries), atol=1e-3)
    root = int(np.flatnonzero((corpus.node_article == number) & (corpus.node_parent == -1))[0])
    leaves = corpus.leaves[corpus.node_start[root] : corpus.node_stop[root]]
    np.testing.assert_allclose(corpus.pieces[leaves], base.embed(texts.leaves), atol=1e-3)


def test_an_interrupted_writer_goes_on_and_every_setting_has_its_own_shards(tmp_path: Path) -> None:
    texts = articles(20)

    class Failing(toy.Toy):
        def embed_documents(self, texts: object) -> list[list[float]]:
            if self.calls > 12:
                raise ConnectionError("gone")
            return super().embed_documents(texts)  # type: ignore[arg-type]

    failing = Base("toy", Failing(), 100, toy_base().count_tokens, exact=False)
    with pytest.raises(ConnectionError):
        ShardWriter(tmp_path, failing, SETTINGS, 0).write(texts)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert written
    assert all(path.suffix == ".safetensors" for path in written)

    source = toy.Toy()
    whole = Base("toy", source, 100, toy_base().count_tokens, exact=False)
    paths = ShardWriter(tmp_path, whole, SETTINGS, 0).write(texts)
    assert len(paths) == 3
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    at_once = ShardWriter(tmp_path / "other", whole, SETTINGS, 0).write(texts)
    assert [path.name for path in paths] == [path.name for path in at_once]
    for path, other in zip(paths, at_once, strict=True):
        (arrays, about), (other_arrays, other_about) = read_shard(path), read_shard(other)
        assert about == other_about
        assert all(np.array_equal(array, other_arrays[name]) for name, array in arrays.items())

    calls = source.calls
    ShardWriter(tmp_path, whole, SETTINGS, 0).write(texts)
    assert source.calls == calls
    elsewhere = ShardWriter(tmp_path, whole, replace(SETTINGS, spans=1), 0).path(texts[:8])
    assert elsewhere not in paths
    assert ShardWriter(tmp_path, whole, SETTINGS, 1).path(texts[:8]) not in paths

    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(TrainingError, match="Delete it"):
        Corpus.load(paths)


def test_texts_without_two_chunks(tmp_path: Path) -> None:
    short = [Article("a", "en", "", "One sentence is all."), *articles(1)]
    writer = ShardWriter(tmp_path, toy_base(), SETTINGS, 0)
    assert Corpus.load(writer.write(short)).too_short == 1
    with pytest.raises(InputError, match="None of 1 texts has two chunks"):
        Corpus.load(writer.write(short[:1]))


def test_a_full_disk_is_told() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full on this system")
    with pytest.raises(OSError) as caught, full.open("wb", buffering=0) as file:  # noqa: PT011 - asked below
        file.write(b"x")
    error = no_space(caught.value, Path("runs"), 2_000_000)
    assert isinstance(error, TrainingError)
    assert "No space is left for 2.0 MB in runs" in str(error)
    other = PermissionError(13, "no")
    assert no_space(other, Path("runs")) is other


# -- batches -----------------------------------------------------------------------------------------------


def batches(corpus: Corpus, name: str, stage: object, **options: object) -> Batches:
    return Batches(corpus, name, stage, shares={"en": 1.0, "de": 1.0}, seed=0, **options)  # type: ignore[arg-type]


def rows_of(corpus: Corpus, vectors: np.ndarray) -> np.ndarray:
    """Which chunk each vector is."""
    cosines = vectors @ corpus.chunks.astype(np.float32).T
    assert (cosines.max(axis=1) > 0.999).all()
    return cosines.argmax(axis=1)


def test_batches_depend_on_seed_and_step_alone(corpus: Corpus) -> None:
    stage = TenToOne(batch_size=16, retrieval=1.0)
    one, other = (batches(corpus, "ten_to_one", stage) for _ in range(2))
    other.batch(3)
    for name, array in one.batch(7).items():
        np.testing.assert_array_equal(array, other.batch(7)[name])
    assert not np.array_equal(one.batch(7)["teacher"], one.batch(8)["teacher"])
    assert set(one.names(7)) <= set(corpus.ids)


def test_languages_are_drawn_by_their_shares(corpus: Corpus) -> None:
    drawn = Batches(
        corpus, "ten_to_one", TenToOne(batch_size=400, associativity=0), shares={"en": 1.0, "de": 3.0}, seed=0
    )._make(0)[1]
    german = np.mean([corpus.languages[article] == "de" for article in drawn.tolist()])
    assert abs(german - 0.75) < 0.07  # three standard deviations


def test_false_histories_begin_another_article(corpus: Corpus) -> None:
    stage = SelfSupervised(batch_size=16, longest=20)
    batch = batches(corpus, "self_supervised", stage).batch(0)
    assert batch["follows"].sum() == 8
    for row in range(16):
        n = int(batch["mask"][row].sum())
        rows = rows_of(corpus, batch["vectors"][row, :n])
        owner = np.searchsorted(corpus.articles, rows, side="right") - 1
        assert (corpus.languages[owner[0]]) == corpus.languages[owner[-1]]
        assert rows[0] == corpus.articles[owner[0]]  # whole articles from their beginning: no windows
        if batch["follows"][row]:
            assert rows.tolist() == list(range(rows[0], rows[0] + n))
            continue
        half = int((owner == owner[0]).sum())
        assert 0 < half < n
        assert rows[half] == corpus.articles[owner[half]]
        assert (owner[half:] == owner[half]).all()
        assert owner[half] != owner[0]
    share = batch["masked"].sum() / batch["mask"].sum()
    assert 0.1 < share < 0.2
    assert not (batch["masked"] & ~batch["mask"]).any()
    assert batch["masked"].any(axis=1).all()


def test_combinations_of_a_tree_cover_their_node(corpus: Corpus) -> None:
    stage = FiveTwelveToOne(batch_size=8, longest=12)
    made = batches(corpus, "five_twelve_to_one", stage)
    counts = set()
    for step in range(30):
        batch = made.batch(step)
        assert batch["mask"].sum(1).max() <= stage.longest
        counts |= set(batch["mask"].sum(1).tolist())
        for row in range(8):
            cosines = corpus.nodes.astype(np.float32) @ batch["teacher"][row]
            nodes = cosines > 0.999  # several, where a full stop makes the difference
            sizes = corpus.node_stop[nodes] - corpus.node_start[nodes]
            assert batch["masses"][row].sum() in sizes  # every single token once
    assert {2, 10} <= counts

    rng = np.random.default_rng(0)
    root = int(np.flatnonzero(corpus.node_parent == -1)[0])
    leaves = corpus.leaves[corpus.node_start[root] : corpus.node_stop[root]]
    np.testing.assert_array_equal(made._parts(root, 1.0, rng)[0], corpus.pieces[leaves].astype(np.float32))


def test_windows_singles_and_divisions(corpus: Corpus) -> None:
    stage = TenToOne(batch_size=64, singles=0.3, longest=30, retrieval=1.0, hidden=1.0)
    made = batches(corpus, "ten_to_one", stage, window=6)
    for step in range(4):
        batch = made.batch(step)
        single = batch["mask"].sum(1) == 1
        assert single.any()
        np.testing.assert_allclose(batch["vectors"][single, 0], batch["teacher"][single], atol=1e-3)
        for name in ("parts", "other"):
            parts = batch[f"nested_{name}"]
            whole = name == "other" and parts.shape[1] == 1
            assert whole or parts.shape[1] <= 6
            assert parts.shape[2] <= 6
            for row, n in zip(parts, batch["nested_mask"].sum(1), strict=True):
                assert row[row >= 0].tolist() == list(range(n))  # every vector once, in order
        for row in range(64):
            article = int(batch["retrieval_articles"][row])
            n = int(batch["retrieval_mask"][row].sum())
            chunks = rows_of(corpus, batch["retrieval_vectors"][row, :n])
            assert corpus.articles[article] <= chunks.min() <= chunks.max() < corpus.articles[article + 1]
            query = int((corpus.queries.astype(np.float32) @ batch["retrieval_queries"][row]).argmax())
            assert corpus.query_chunk[query] not in chunks  # hidden: it would give the answer away


def test_some_divisions_grow_chunk_by_chunk(corpus: Corpus) -> None:
    made = batches(corpus, "ten_to_one", TenToOne(batch_size=4, longest=30), window=6)
    grown = 0
    for step in range(20):
        for parts in made.batch(step)["nested_parts"]:
            sizes = (parts >= 0).sum(1)
            sizes = sizes[sizes > 0]
            grown += len(sizes) > 2 and sizes[0] > 1 and (sizes[1:] == 1).all()
    assert grown >= 10


def test_beyond_the_context_the_target_is_the_mean_of_all_chunks(corpus: Corpus) -> None:
    stage = TenToOne(batch_size=4, longest=14, beyond=1.0, beyond_size=16, opening=2.0)
    made = batches(corpus, "ten_to_one", stage, window=10)
    context = int(corpus.window_count.max())
    assert context < stage.longest
    grown = 0
    for step in range(4):
        batch = made.batch(step)
        for row in range(16):
            n = int(batch["beyond_mask"][row].sum())
            parts = batch["beyond_parts"][row]
            vectors, masses = batch["beyond_vectors"][row, :n], batch["beyond_masses"][row, :n]
            assert parts[parts >= 0].tolist() == list(range(n))
            last = int(rows_of(corpus, vectors[-1:])[0])
            article = int(np.searchsorted(corpus.articles, last, side="right")) - 1
            chunks = corpus.chunks[corpus.articles[article] : last + 1].astype(np.float64)
            tokens = corpus.tokens[corpus.articles[article] : last + 1].astype(np.float64)
            assert context < len(chunks) <= stage.longest
            assert masses.sum() == pytest.approx(tokens.sum())
            weights = tokens * np.where(np.arange(len(chunks)) < context, 2.0, 1.0)
            chunks /= np.linalg.norm(chunks, axis=1, keepdims=True)
            target = weights @ chunks
            np.testing.assert_allclose(
                batch["beyond_target"][row], target / np.linalg.norm(target), atol=1e-5
            )
            if n < len(chunks):  # a first part's mean, then what came after it
                grown += 1
                part = len(chunks) - n + 1
                root = weights[:part] @ chunks[:part]
                np.testing.assert_allclose(vectors[0], root / np.linalg.norm(root), atol=1e-5)
                assert (parts >= 0).any(1).sum() == 1
    assert 10 < grown < 54


def test_nothing_lies_beyond_the_context_of_short_texts(corpus: Corpus) -> None:
    longest = int(corpus.lengths.max())
    short = replace(corpus, window_count=np.full_like(corpus.window_count, longest))
    with pytest.raises(InputError, match=rf"context holds {longest}\. Name longer texts"):
        batches(short, "ten_to_one", TenToOne(beyond=1.0))


def test_longest_must_fit_two_levels_of_the_window(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="make 16 at the most"):
        batches(corpus, "ten_to_one", TenToOne(longest=20), window=4)
