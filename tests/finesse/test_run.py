import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from merger_plugins import CalibratedMerger, MeanMerger, load_merger
from merger_plugins.errors import DimensionError, InputError, ResultError
from merger_plugins.finesse.probes import Article, EmbeddedProbes, choose_probes, embed_probes
from merger_plugins.finesse.results import FinesseResult, verify
from merger_plugins.finesse.run import Progress, run_finesse, run_native
from merger_plugins.finesse.settings import FinesseSettings
from tests.finesse.articles import DIMENSION, WordEmbedder, embedded
from tests.strategies import Array

SETTINGS = FinesseSettings(
    lengths=(4, 7, 12), samples=4, timed=2, order_lengths=(4, 6), order_samples=2, order_group=3
)

TOPICS = [
    "Bees cap a cell once the honey in it holds less than a fifth of water.",
    "The night train to the coast was delayed because a signal box had lost its power.",
    "A sourdough starter wants equal weights of flour and water twice a day.",
    "The court held that the contract was void since neither party had signed it.",
    "Glaciers carve valleys with steep walls and a flat floor.",
    "Her third symphony was first played in a half empty hall in Vienna.",
    "The compiler rejects a loop whose bound is not known before it runs.",
    "Rotate the valve a quarter turn until the pressure falls below two bar.",
]


@pytest.fixture(scope="module")
def probes() -> EmbeddedProbes:
    return embedded(SETTINGS.probes)


def naive_scores(merger: MeanMerger, probes: EmbeddedProbes, sample: np.ndarray) -> tuple[float, float]:
    """Top-Down and Bottom-Up (q1q3) of a sample as their definition reads, one merge and cosine at a time."""
    chunks = [merger.merge(probes.vectors[[row]]) for row in sample]
    syntheses = [merger.merge(probes.vectors[sample[:stop]]) for stop in range(1, len(sample) + 1)]
    down, up = [], []
    for i in range(1, len(sample) - 1):
        cosines = [float(np.dot(syntheses[i], chunk)) for chunk in chunks]
        down.append(np.quantile(cosines[: i + 1], 0.25) - np.quantile(cosines[i + 1 :], 0.75))
    for j in range(1, len(sample)):
        cosines = [float(np.dot(synthesis, chunks[j])) for synthesis in syntheses]
        up.append(np.quantile(cosines[j:], 0.25) - np.quantile(cosines[:j], 0.75))
    return float(np.mean(down)), float(np.mean(up))


def naive_order(
    merger: MeanMerger, probes: EmbeddedProbes, chunks: np.ndarray, contexts: np.ndarray, count: int
) -> list[float]:
    """The order scores (q1q3) at every place of one probe length."""
    probe = list(chunks[:count])
    merged = merger.merge(probes.vectors[probe])
    scores = []
    for place in range(len(chunks) + 1 - count + 1):
        groups = []
        for inside in (probe, probe[::-1]):
            cosines = []
            for context in contexts:
                rest = list(context[: len(chunks) + 1 - count])
                sequence = rest[:place] + inside + rest[place:]
                assert len(sequence) == len(chunks) + 1
                cosines.append(float(np.dot(merged, merger.merge(probes.vectors[sequence]))))
            groups.append(cosines)
        scores.append((np.quantile(groups[0], 0.25) - np.quantile(groups[1], 0.75)) * 1000)
    return scores


class FadingMean(MeanMerger):
    """A mean in which each chunk counts a fifth less than the one before: it has an order to be found."""

    def merge(self, vectors: Array, *, masses: None = None) -> Array:
        return super().merge(vectors, masses=0.8 ** np.arange(len(vectors)))

    def merge_many(self, sequences: Sequence[Array], *, masses: None = None) -> Array:
        return super().merge_many(sequences, masses=[0.8 ** np.arange(len(rows)) for rows in sequences])


@pytest.mark.parametrize("merger", [MeanMerger(), FadingMean()])
def test_a_run_scores_as_the_definition_reads(merger: MeanMerger, probes: EmbeddedProbes) -> None:
    result = run_finesse(merger, probes, SETTINGS)
    for length, scores in result.lengths.items():
        samples = SETTINGS.draw(len(probes), length)
        assert all(len(set(sample)) == length for sample in samples)
        expected = [naive_scores(merger, probes, sample) for sample in samples]
        np.testing.assert_allclose(
            list(zip(scores.td["q1q3"], scores.bu["q1q3"], strict=True)), expected, atol=1e-6
        )
        assert scores.summary()["q1q3"]["rss"]["mean"] == pytest.approx(
            np.mean([(td + bu) * 500 for td, bu in expected]), abs=1e-3
        )
    for length, order in result.orders.items():
        for sample, (chunks, contexts) in zip(
            order.samples["q1q3"], SETTINGS.draw_order(len(probes), length), strict=True
        ):
            assert list(sample) == list(range(2, length))
            for count, places in sample.items():
                expected_places = naive_order(merger, probes, chunks, contexts, count)
                np.testing.assert_allclose(places, expected_places, atol=1e-3)


def test_a_mean_has_no_sense_of_order(probes: EmbeddedProbes) -> None:
    result = run_finesse(MeanMerger(), probes, SETTINGS)
    assert result.average["q2q2"]["srs"] == pytest.approx(0, abs=1e-4)
    assert result.average["q2q2"]["position_bias"] == pytest.approx(0, abs=1e-3)
    # Quartiles of one and the same group: never above 0.
    assert max(places for part in result.orders.values() for places in part.srs()) < 0
    ordered = run_finesse(FadingMean(), probes, SETTINGS)
    assert ordered.average["q2q2"]["position_bias"] > 1


def test_native_mode_embeds_the_growing_text(probes: EmbeddedProbes) -> None:
    embedder = WordEmbedder()
    native = embed_probes(probes.probes, embedder)
    embedder.seen.clear()
    settings = replace(SETTINGS, order_lengths=(4,))
    result = run_native(native, settings)
    # 12 chunks of 6 tokens and a margin of 100 exceed a context of 160.
    assert list(result.lengths) == [4, 7]
    assert result.skipped == {12: "12 chunks of 6 tokens may not fit a context of 160"}
    texts = probes.probes.texts
    for sample in settings.draw(len(probes), 7):
        for stop in range(2, 8):
            assert " ".join(texts[row] for row in sample[:stop]) in embedder.seen
    # The embedder adds words up and hears a little of their order, which the mean of chunk vectors does not.
    merged = run_finesse(MeanMerger(), probes, settings)
    assert result.lengths[4].td["q1q3"] == pytest.approx(merged.lengths[4].td["q1q3"], abs=0.05)
    assert result.average["q2q2"]["srs"] > merged.average["q2q2"]["srs"] + 1
    assert result.lengths[4].full_ms == result.lengths[4].merging_ms
    with pytest.raises(
        InputError, match=r"does not tell how many tokens .* embed_probes\(..., context=512\)"
    ):
        run_native(replace(native, context=None), settings)


def test_texts_of_native_mode_are_embedded_once(probes: EmbeddedProbes, tmp_path: Path) -> None:
    embedder = WordEmbedder()
    native = embed_probes(probes.probes, embedder, folder=tmp_path)
    settings = replace(SETTINGS, timed=0, order_lengths=(4,))
    first = run_native(native, settings)
    embedder.seen.clear()
    assert run_native(native, settings).scores_hash == first.scores_hash
    assert embedder.seen == []


def test_the_bundled_embedder_and_mergers(tmp_path: Path) -> None:
    texts = [Article(str(n), "en", text) for n, text in enumerate(TOPICS)]
    probes = embed_probes(choose_probes(texts, 8, tokens=12))
    settings = FinesseSettings(
        lengths=(4,), samples=2, timed=1, order_lengths=(3,), order_samples=1, order_group=2
    )
    results = {}
    for merger in (MeanMerger(), load_merger()):
        path = tmp_path / f"{type(merger).__name__}.json"
        result = results[type(merger)] = run_finesse(merger, probes, settings, path=path)
        assert verify(path, merger=merger, probes=probes).scores_hash == result.scores_hash
        (full,), (merging,) = result.lengths[4].full_ms, result.lengths[4].merging_ms
        assert full > merging > 0
        assert min(result.lengths[4].td["q1q3"]) > 0.3  # eight subjects that have nothing in common
    assert results[MeanMerger].scores_hash != results[CalibratedMerger].scores_hash
    native = run_native(probes, settings)
    assert native.run["merger"] is None
    assert native.run["embedder"]["name"] == "all-MiniLM-L6-v2"
    assert native.lengths[4].td["q1q3"] != results[MeanMerger].lengths[4].td["q1q3"]


def test_two_runs_of_a_seed_agree(probes: EmbeddedProbes) -> None:
    first, second = (run_finesse(MeanMerger(), probes, SETTINGS) for _ in range(2))
    assert first.scores_hash == second.scores_hash
    other = run_finesse(MeanMerger(), probes, replace(SETTINGS, seed=1))
    assert other.lengths[4].td != first.lengths[4].td
    # A length has the same samples whatever else is measured.
    alone = run_finesse(MeanMerger(), probes, replace(SETTINGS, lengths=(7,), order_lengths=()))
    assert alone.lengths[7].td == first.lengths[7].td
    assert alone.lengths[7].bu == first.lengths[7].bu


class InterruptedRunError(Exception):
    pass


def interrupt_at(stage: str, length: int, sample: int) -> Progress:
    def progress(*place: object) -> None:
        if place[:3] == (stage, length, sample):
            raise InterruptedRunError

    return progress


@pytest.mark.parametrize("place", [("separation", 4, 2), ("separation", 12, 1), ("order", 6, 2)])
def test_an_interrupted_run_goes_on(
    place: tuple[str, int, int], tmp_path: Path, probes: EmbeddedProbes
) -> None:
    path = tmp_path / "result.json"
    whole = run_finesse(MeanMerger(), probes, SETTINGS)
    with pytest.raises(InterruptedRunError):
        run_finesse(MeanMerger(), probes, SETTINGS, path=path, progress=interrupt_at(*place))
    before = verify(path) if path.exists() else None
    assert (before is None) == (place[1] == 4)
    calls: list[tuple[str, int]] = []
    result = run_finesse(
        MeanMerger(), probes, SETTINGS, path=path, progress=lambda *call: calls.append(call[:2])
    )
    assert result.scores_hash == whole.scores_hash
    assert result.complete
    if before is not None:
        assert not before.complete
        assert before.lengths.items() <= result.lengths.items()  # times and all
        assert not {length for stage, length in calls if stage == "separation"} & set(before.lengths)
    assert verify(path) == result
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    # A finished run is read, not measured again.
    assert run_finesse(MeanMerger(), probes, SETTINGS, path=path, progress=interrupt_at(*place)) == result


def finished(path: Path, probes: EmbeddedProbes) -> FinesseResult:
    return run_finesse(MeanMerger(), probes, SETTINGS, path=path)


def test_an_edited_file_is_found_out(tmp_path: Path, probes: EmbeddedProbes) -> None:
    path = tmp_path / "result.json"
    result = finished(path, probes)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document))  # other white space is no edit
    assert verify(path) == result
    edits = [
        ("lengths", "12", "td", "q1q3", 2),
        ("lengths", "4", "summary", "q1q3", "finesse", "mean"),
        ("run", "settings", "samples"),
        ("run", "merger", "fingerprint"),
        ("average", "q1q3", "rss"),
        ("scores_hash",),
        ("content_hash",),
    ]
    for *where, last in edits:
        edited = json.loads(json.dumps(document))
        part = edited
        for key in where:
            part = part[key]
        part[last] = 0.5
        path.write_text(json.dumps(edited))
        with pytest.raises(ResultError, match="was edited or damaged"):
            verify(path)
        with pytest.raises(ResultError, match="was edited or damaged"):
            finished(path, probes)
    path.write_text(json.dumps(document)[:-100])
    with pytest.raises(ResultError, match="is damaged"):
        verify(path)
    path.write_text(json.dumps(document | {"format": 99}))
    with pytest.raises(ResultError, match="format 99, and this version reads up to 1"):
        verify(path)
    path.write_text("[]")
    with pytest.raises(ResultError, match="is no result file"):
        verify(path)
    with pytest.raises(ResultError, match="cannot be read"):
        verify(tmp_path)
    with pytest.raises(ResultError, match="There is no result file"):
        verify(tmp_path / "none.json")


def test_results_of_other_runs_do_not_mix(tmp_path: Path, probes: EmbeddedProbes) -> None:
    path = tmp_path / "result.json"
    finished(path, probes)
    other = CalibratedMerger(dimension=DIMENSION)
    with pytest.raises(
        ResultError, match=r"another run: its merger is .*MeanMerger.*, and now it is .*Calibrated"
    ):
        run_finesse(other, probes, SETTINGS, path=path)
    with pytest.raises(ResultError, match="its settings is"):
        run_finesse(MeanMerger(), probes, replace(SETTINGS, seed=3), path=path)
    with pytest.raises(ResultError, match="its benchmark is finesse, and now it is finesse-native"):
        run_native(probes, SETTINGS, path=path)
    with pytest.raises(ResultError, match=r"has the merger .*where .*CalibratedMerger"):
        verify(path, merger=other)
    with pytest.raises(ResultError, match="has the data"):
        verify(path, probes=embedded(SETTINGS.probes, tokens=7))


def test_bad_input(probes: EmbeddedProbes) -> None:
    with pytest.raises(DimensionError, match="dimension 24, and this merger works in dimension 384"):
        run_finesse(load_merger(), probes, SETTINGS)
    with pytest.raises(
        InputError, match=r"48 probes arrived, and these settings need 60\. Choose more probes"
    ):
        run_finesse(MeanMerger(), probes, replace(SETTINGS, samples=5))
    with pytest.raises(InputError, match=r"lengths are \(2,\)"):
        FinesseSettings(lengths=(2,))
    with pytest.raises(InputError, match="at least one is needed"):
        FinesseSettings(lengths=(), order_lengths=())
    with pytest.raises(InputError, match="samples is 0"):
        FinesseSettings(samples=0)
