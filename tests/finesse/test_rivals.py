from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, MeanMerger, load_merger
from merger_plugins.errors import DimensionError, EmptyInputError, InputError
from merger_plugins.finesse.collections import Collection, Units, joined, units
from merger_plugins.finesse.embedding import Embeddings
from merger_plugins.finesse.pooling import RisingMerger, RolledMerger, whitened_mean
from merger_plugins.finesse.rivals import (
    BASELINE,
    Embedded,
    EveryChunk,
    Fused,
    Merging,
    QuerySide,
    Registry,
    Rival,
    calibrated,
    orthogonal_limit,
    own_limit,
    rivals,
)
from merger_plugins.mergers.calibrated import ridge
from merger_plugins.mergers.loading import SYNTHESIZER
from merger_plugins.stores import FusionWeights
from tests.finesse.lab import WordEmbedder, collection, retrieval_data, source
from tests.strategies import chunk_vectors

Array = np.ndarray
MERGING = [rival for rival in rivals() if isinstance(rival, Merging) and rival.model is None]


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def woods() -> Collection:
    return collection()


def by_hand(name: str, x: Array, g: Array, everything: Array) -> Array:
    """A rival's formula over unit chunks x and masses g of one document, in float64, chunk by chunk."""
    n, d = x.shape
    m = everything.mean(axis=0)
    if name == "mean":
        return sum(g[i] * x[i] for i in range(n))
    if name == "mean, unweighted":
        return sum(x[i] for i in range(n))
    if name == "mean, chain":
        merged, mass = x[0], g[0]
        for i in range(1, n):
            merged, mass = unit(mass * merged + g[i] * x[i]), mass + g[i]
        return merged
    if name == "first + mean":
        return x[0] + unit(by_hand("mean", x, g, everything))
    if name == "max pooling":
        return np.array([max(x[i][k] for i in range(n)) for k in range(d)])
    if name == "centred mean":
        return by_hand("mean", x, g, everything) / g.sum() - m
    if name == "whitened mean":
        values, vectors = np.linalg.eigh(np.cov(everything.T, bias=True))
        p = vectors @ np.diag((values + 0.003 * values.max()) ** -0.5) @ vectors.T
        return p @ sum(g[i] * unit(p @ (x[i] - m)) for i in range(n))
    assert name == "generalised max pooling"
    share = g / g.mean()
    gram = sum(share[i] * np.outer(x[i], x[i]) for i in range(n))
    lam = float(ridge(np.array([n]))[0])
    return np.linalg.solve(gram + lam * np.eye(d), sum(share[i] * x[i] for i in range(n)))


@pytest.mark.parametrize(
    "rival", [r for r in MERGING if not r.name.startswith("calibrated")], ids=lambda r: r.name
)
def test_each_merging_rival_is_its_formula(rival: Merging, woods: Collection):
    everything = unit(woods.chunks.astype(np.float64))
    merger = rival.merger(woods.sequences())
    for vectors, masses in list(zip(woods.sequences(), woods.sequence_masses(), strict=True))[:3]:
        x, g = unit(vectors.astype(np.float64)), masses.astype(np.float64)
        expected = unit(by_hand(rival.name, x, g, everything))
        np.testing.assert_allclose(merger.merge(7 * vectors, masses=masses), expected, atol=2e-5)


@pytest.mark.parametrize("rival", MERGING, ids=lambda r: r.name)
def test_results_do_not_depend_on_batch_mates(rival: Merging, woods: Collection):
    merger = rival.merger(woods.sequences())
    lengths = [1, 2, 3, 5, 5, 12, 13, 14, 33]
    parts = [woods.chunks[i : i + length] for i, length in enumerate(lengths)]
    masses = [woods.masses[i : i + length] for i, length in enumerate(lengths)]
    merged = merger.merge_many(parts, masses=masses)
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), 1, atol=1e-5)
    for row, part, mass in zip(merged, parts, masses, strict=True):
        np.testing.assert_allclose(merger.merge(part, masses=mass), row, atol=1e-5)


@pytest.mark.parametrize("rival", MERGING, ids=lambda r: r.name)
def test_a_tree_merges_what_was_merged(rival: Merging, woods: Collection):
    merger = rival.merger(woods.sequences())
    rolling = merger.rolling()
    rolling.extend(woods.chunks[:35], masses=woods.masses[:35])
    rolling.remove(4)
    assert np.linalg.norm(rolling.vector) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(rolling.contextual()).all()


@pytest.mark.parametrize("name", ["centred mean", "whitened mean", "generalised max pooling", "calibrated"])
def test_chunks_of_another_dimension_are_refused(name: str, woods: Collection):
    (rival,) = rivals([name])
    merger = rival.merger(woods.sequences())
    assert merger is not None
    with pytest.raises(DimensionError, match=r"dimension 5.*24"):
        merger.merge(np.ones((2, 5), np.float32))


def test_strategies_are_those_of_rolling_merges(woods: Collection):
    vectors, masses = woods.chunks[:60], woods.masses[:60]
    merger = calibrated(woods.sequences())
    flat = RolledMerger(merger, "flat").merge(vectors, masses=masses)
    tree = RolledMerger(merger, "tree").merge(vectors, masses=masses)
    chain = RolledMerger(merger, "chain").merge(vectors, masses=masses)
    np.testing.assert_allclose(flat, merger.merge(vectors, masses=masses), atol=1e-4)
    rolling = merger.rolling()
    rolling.extend(vectors, masses=masses)
    np.testing.assert_array_equal(tree, rolling.vector)
    assert 0.3 < float(chain @ flat) < 0.9999
    assert len({RolledMerger(merger, s).fingerprint for s in ("flat", "tree", "chain")}) == 3


def test_later_chunks_count_more_where_masses_rise(woods: Collection):
    merger = calibrated(woods.sequences())
    vectors, masses = woods.chunks[:9], woods.masses[:9]
    expected = merger.merge(vectors, masses=masses * np.sqrt(np.arange(1, 10)))
    np.testing.assert_allclose(RisingMerger(merger).merge(vectors, masses=masses), expected, atol=1e-5)
    np.testing.assert_allclose(
        RisingMerger(merger, 0).merge(vectors, masses=masses), merger.merge(vectors, masses=masses), atol=1e-6
    )
    assert RisingMerger(merger).fingerprint not in (merger.fingerprint, RisingMerger(merger, 0).fingerprint)


def test_rivals_of_a_collection_have_fingerprints_of_their_own(woods: Collection):
    other = collection(seed=1)
    one, two = (whitened_mean(part.sequences()).fingerprint for part in (woods, other))
    assert one != two
    assert one == whitened_mean(woods.sequences()).fingerprint


def test_nothing_is_written_of_a_rival(woods: Collection, tmp_path: Path):
    with pytest.raises(InputError, match="rival of the benchmark"):
        whitened_mean(woods.sequences()).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_constant_chunks_cannot_be_whitened():
    constant = np.tile(chunk_vectors(0, 1), (20, 1))
    with pytest.raises(InputError, match="one direction"):
        whitened_mean([constant])


def test_the_calibrated_rival_is_the_bundled_merger_for_its_dimension_alone(woods: Collection):
    own = chunk_vectors(0, 50, 384)
    assert calibrated([own]).fingerprint == load_merger().calibrated([own]).fingerprint
    expected = CalibratedMerger(dimension=24).calibrated(woods.sequences())
    assert calibrated(woods.sequences()).fingerprint == expected.fingerprint


def cosines(collection: Collection, vectors: Array) -> Array:
    return collection.queries @ unit(vectors).T


def scores(rival: Rival, of: Collection, cut: Units) -> Array:
    stored = rival.stored(of, cut)
    assert stored is not None
    return stored.scores(cut.targets)


def test_every_chunk_scores_a_target_by_its_best_chunk(woods: Collection):
    everything = cosines(woods, woods.chunks)
    for level in ("documents", "passages"):
        cut = units(woods, level)
        found = scores(EveryChunk("all", ""), woods, cut)
        owner = woods.document if level == "documents" else woods.passage
        assert owner is not None
        for target in range(cut.targets):
            np.testing.assert_allclose(
                found[:, target], everything[:, owner == target].max(axis=1), atol=1e-6
            )


def test_own_and_contextual_vectors_are_the_mergers(woods: Collection):
    cut = units(woods, "documents")
    merger = MeanMerger()
    plain = EveryChunk("own", "", lambda _sample: merger).stored(woods, cut)
    near = EveryChunk("near", "", lambda _sample: merger, contextual=True).stored(woods, cut)
    np.testing.assert_allclose(plain.vectors, unit(woods.chunks), atol=1e-6)
    third = merger.contextualize(woods.sequences()[2], masses=woods.sequence_masses()[2])
    np.testing.assert_allclose(near.vectors[woods.document == 2], third, atol=1e-6)


def test_fused_scores_are_those_of_the_levels_added_up(woods: Collection):
    cut, weights = units(woods, "documents"), FusionWeights()
    stored = Fused("fused", "", lambda _sample: MeanMerger(), weights).stored(woods, cut)
    mean = MeanMerger()
    expected = np.full((len(woods.queries), 12), -np.inf)
    for document, (part, mass) in enumerate(zip(woods.sequences(), woods.sequence_masses(), strict=True)):
        root = woods.queries @ mean.merge(part, masses=mass)
        for place, chunk in enumerate(unit(part)):
            start = place // 10 * 10
            section = mean.merge(part[start : start + 10], masses=mass[start : start + 10])
            score = woods.queries @ chunk + weights.section * (woods.queries @ section) + weights.root * root
            expected[:, document] = np.maximum(expected[:, document], score)
    np.testing.assert_allclose(stored.scores(12), expected, atol=1e-5)
    assert stored.beside == 12 * 2 + 12


def test_query_side_calibration_maps_queries_alone(woods: Collection):
    cut = units(woods, "documents")
    stored = QuerySide("q", "", calibrated).stored(woods, cut)
    mean = MeanMerger().merge_many(woods.sequences(), masses=woods.sequence_masses())
    np.testing.assert_allclose(stored.vectors, mean, atol=1e-6)
    whitening = calibrated(woods.sequences()).calibration.whitening
    expected = unit(np.stack([whitening @ whitening @ query for query in woods.queries.astype(np.float64)]))
    np.testing.assert_allclose(stored.queries, expected, atol=1e-5)


def test_truncation_reads_the_beginning_of_each_text(tmp_path: Path):
    task = retrieval_data(tmp_path)
    loaded = task.collection(source(tmp_path, WordEmbedder(most_words=5)))
    assert loaded.text is not None
    cut = units(loaded, "documents")
    stored = Embedded("truncation", "").stored(loaded, cut)
    assert stored is not None
    words = [" ".join(text.split()[:5]) for text in loaded.text.documents]
    np.testing.assert_allclose(stored.vectors, unit(WordEmbedder().embed_documents(words)), atol=1e-6)
    passages = units(loaded, "passages")
    stored = Embedded("long", "", Embeddings(WordEmbedder())).stored(loaded, passages)
    assert stored is not None
    paragraphs = [part for text in loaded.text.documents for part in text.split("\n\n")]
    np.testing.assert_allclose(stored.vectors, unit(WordEmbedder().embed_documents(paragraphs)), atol=1e-6)


def test_a_collection_without_text_has_no_truncation(woods: Collection):
    assert Embedded("truncation", "").stored(woods, units(woods, "documents")) is None


def test_no_vector_passes_the_limit_and_the_mean_reaches_it():
    vectors = chunk_vectors(0, 9, 16)
    x, limit = unit(vectors.astype(np.float64)), own_limit(vectors)
    assert float((x @ MeanMerger().merge(vectors)).mean()) == pytest.approx(limit, abs=1e-6)
    others = unit(np.random.default_rng(0).standard_normal((500, 16)) + x.mean(axis=0))
    assert (x @ others.T).mean(axis=0).max() < limit
    assert (
        own_limit(np.eye(9, dtype=np.float32)) == pytest.approx(orthogonal_limit(9)) == pytest.approx(1 / 3)
    )
    with pytest.raises(InputError, match="count is 0"):
        orthogonal_limit(0)


def test_sections_and_passages_are_cut_where_documents_end():
    made = collection(documents=3, chunks=5)
    cut = units(made, "sections", size=2)
    assert cut.group[:5].tolist() == [0, 0, 1, 1, 2]
    assert cut.target.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert cut.chunk_target.tolist() == made.document.tolist()
    with pytest.raises(InputError, match="no passages"):
        units(joined([made, made], "two"), "passages")
    with pytest.raises(InputError, match="'books' is no level"):
        units(made, "books")  # type: ignore[arg-type]


def test_a_joined_collection_keeps_the_first_questions():
    one, two = collection(documents=3), collection(documents=4, seed=1)
    both = joined([one, two], "both")
    assert both.documents == 7
    assert both.gold.tolist() == one.gold.tolist()
    np.testing.assert_array_equal(both.sequences()[3], two.sequences()[0])
    with pytest.raises(DimensionError, match=r"\[24, 25\]"):
        joined([one, collection(dimension=25)], "both")
    with pytest.raises(EmptyInputError):
        joined([], "none")


def test_a_registry_gives_what_can_take_part():
    known = Registry()
    known.register(Merging("mine", "", lambda _sample: MeanMerger()))
    known.register(Merging("absent", "", lambda _sample: MeanMerger(), model="no-such-model"))
    known.register(Merging("narrow", "", lambda _sample: MeanMerger(), dimension=7))
    assert [rival.name for rival in known.rivals()] == ["mine", "narrow"]
    known.register(Merging("ours", "", lambda _sample: MeanMerger(), model=SYNTHESIZER))
    assert list(known.unfit(7, ours=True)) == ["absent"]
    assert known.unfit(24, ours=False) | {"absent": ""} == {
        "absent": "",
        "narrow": "it works in dimension 7, and the embedder gives 24",
        "ours": "it was trained for all-MiniLM-L6-v2, and the embedder is another one",
    }
    with pytest.raises(InputError, match="no-such-model is not part of this installation"):
        known.rivals(["absent"])
    with pytest.raises(InputError, match="'yours' is no rival; there are 'mine', 'absent', 'narrow', 'ours'"):
        known.rivals(["yours"])
    with pytest.raises(InputError, match="already"):
        known.register(Merging("mine", "", lambda _sample: MeanMerger()))


def test_the_table_has_the_baseline_and_names_each_rival_once():
    names = [rival.name for rival in rivals()]
    assert BASELINE in names
    assert len(set(names)) == len(names)
    assert all(rival.about for rival in rivals())


def test_a_collection_that_does_not_fit_together_is_refused(woods: Collection):
    fields = vars(woods)
    for change, message in (
        ({"queries": woods.queries[:, :5]}, "dimension 5"),
        ({"masses": woods.masses[1:]}, "must agree"),
        ({"chunks": woods.chunks[:0]}, "0 chunks"),
    ):
        with pytest.raises(InputError, match=message):
            Collection(**(fields | change))
